"""Measures every candidate of a small space and writes the table: the engine of `nas tabulate`."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from nas.arguments import folder
from nas.errors import DamagedFile, InputError, RunMismatch
from nas.problem import CostTable, Floats
from nas.progress import Progress
from nas.protocols import Task
from nas.space import Candidate, SearchSpace
from nas.table import UNREADABLE, Table, name_arrays, names_of, write_table

MOST = 1_000_000
"""More candidates than this are not tabulated."""

Arrays = Mapping[str, Floats]


def tabulate(task: Task, path: Path, progress: Progress, *, fingerprint: Mapping[str, str] | None = None, chunk: int = 64, save_every_s: float = 30.0) -> Table:
    """Writes the table of a task to `path` and returns it; goes on from `path.part` when it was interrupted.

    Candidates are measured in enumeration order, so that neighbours share what an evaluator can reuse. Failed measurements and candidates that
    a rule forbids are infinite in the table. The `fingerprint` of the task's space tells a partial table of another divergence or data.

    Raises:
        InputError: the space is too large, the file exists, or it cannot be written (found out before anything is measured).
        RunMismatch: the partial file belongs to another space.
        DamagedFile: the partial file cannot be read.
    """
    path = folder("path", path)
    check_table(task.space, path)
    part = path.with_name(path.name + ".part")
    origin = json.dumps(dict(fingerprint or {}), sort_keys=True)
    divergence, stderr = _resumed(part, task, origin)

    def save() -> None:
        """Like the table, with NaN for what is not measured yet."""
        write_table(part, _table(task, divergence, stderr), {"origin": np.array(origin)})

    save()
    try:
        _measure_all(task, divergence, stderr, save, progress, chunk, save_every_s)
    finally:
        save()
    table = _table(task, divergence, stderr)
    write_table(path, table)
    part.unlink()
    return table


def check_table(space: SearchSpace, path: Path) -> None:
    """Raises unless all candidates of the space can be tabulated in that file; before anything is calibrated or measured for it."""
    if path.suffix != ".npz":
        raise InputError(f"a table is written as .npz; '{path}' must end in .npz")
    if path.exists():
        raise InputError(f"table '{path}' exists; remove it or give another name")
    if not path.parent.is_dir():
        raise InputError(f"cannot write table '{path}': there is no folder '{path.parent}'; make it or give another path")
    if space.n_candidates > MOST:
        raise InputError(f"space '{space.name}' has {space.n_candidates:,} candidates; at most {MOST:,} can be tabulated; leave stages or choices out")


def _measure_all(task: Task, divergence: Floats, stderr: Floats, save: Callable[[], None], progress: Progress, chunk: int, save_every_s: float) -> None:
    """Fills in what is NaN, in place, saving now and then."""
    left = np.flatnonzero(np.isnan(divergence))
    saved = time.monotonic()
    for indices in progress.track(np.split(left, range(chunk, len(left), chunk)), "chunks of candidates"):
        rows = np.stack(np.unravel_index(indices, task.space.sizes), axis=1)
        candidates: list[Candidate] = [tuple(row) for row in rows.tolist()]
        divergence[indices], stderr[indices] = _measured(task, candidates)
        if time.monotonic() - saved > save_every_s:
            save()
            saved = time.monotonic()


def _measured(task: Task, candidates: Sequence[Candidate]) -> tuple[Floats, Floats]:
    """Divergences and standard errors; infinite and 0 where there is none."""
    divergence, stderr = np.full(len(candidates), np.inf), np.zeros(len(candidates))
    allowed = [i for i, candidate in enumerate(candidates) if task.space.allows(candidate)]
    for i, measured in zip(allowed, task.evaluator.measure([candidates[i] for i in allowed]), strict=True):
        if measured.divergence is not None and np.isfinite(measured.divergence):
            divergence[i], stderr[i] = measured.divergence, measured.stderr
    return divergence, stderr


def _table(task: Task, divergence: Floats, stderr: Floats) -> Table:
    return Table(task.space.sizes, divergence, task.costs, task.calibration_errors, stderr, names_of(task.space), task.expected_losses)


def _resumed(part: Path, task: Task, origin: str) -> tuple[Floats, Floats]:
    """Divergences and standard errors so far, NaN where nothing was measured."""
    n = task.space.n_candidates
    if not part.exists():
        return np.full(n, np.nan), np.full(n, np.nan)
    try:
        with np.load(part, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except UNREADABLE as error:
        raise DamagedFile(f"'{part}' cannot be read ({error}); remove it to start afresh") from None
    wrong = [name for name in ("divergence", "stderr") if name not in arrays or arrays[name].shape != (n,) or arrays[name].dtype != np.float64]
    if wrong or "sizes" not in arrays:
        raise DamagedFile(f"'{part}' holds no '{(*wrong, 'sizes')[0]}' of {n} numbers; remove it to start afresh")
    if not _belongs(arrays, task) or str(arrays.get("origin", origin)) != origin:
        raise RunMismatch(f"'{part}' was begun with another space, other costs, blocks, data or another divergence; remove it to start afresh")
    return arrays["divergence"], arrays["stderr"]


def _belongs(arrays: Arrays, task: Task) -> bool:
    if not np.array_equal(arrays["sizes"], task.space.sizes):
        return False
    names = name_arrays(names_of(task.space))
    if any(name in arrays and not np.array_equal(arrays[name], values) for name, values in names.items()):  # older parts have none
        return False
    errors = arrays.get("calibration_error")
    if (errors is None) != (task.calibration_errors is None):
        return False
    same_errors = errors is None or np.array_equal(errors, np.asarray(task.calibration_errors), equal_nan=True)
    return same_errors and _same_costs(arrays, task.costs)


def _same_costs(arrays: Arrays, costs: CostTable) -> bool:
    stored = {name.removeprefix("cost_") for name in arrays if name.startswith("cost_")}
    return stored == set(costs.metrics) and all(np.array_equal(arrays[f"cost_{metric}"], costs.by_choice[metric], equal_nan=True) for metric in stored)
