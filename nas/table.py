"""Tables of all divergences of a space, in an `.npz` file.

    sizes             (S,)             choices of each stage
    divergence        (prod sizes,)    row-major, last stage fastest; infinite where a measurement failed; a search takes entry 0, the teacher's, as 0
    cost_<metric>     (S, max K)       one array a metric, at least one; padding is ignored
    fixed_<metric>    scalar           cost of what is not searched, 0 when absent; needs its cost_<metric>
    calibration_error (S, max K)       optional; NaN means unknown, column 0 counts as 0
    expected_loss (S, max K)           optional; the divergence expected of each block alone; NaN means unknown, column 0 counts as 0
    stderr            (prod sizes,)    optional standard errors of the divergences
    stage_names       (S,)             optional texts; s0, s1, ... when absent
    choice_names      (S, max K)       optional texts, column 0 'teacher', padding is ignored; teacher, c1, c2, ... when absent

Other arrays are ignored. Symbols: `S` stages, `K` choices, `N = prod sizes`.
"""

import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas.errors import InputError
from nas.problem import CostTable, Floats
from nas.space import TEACHER, SearchSpace

Arrays = Mapping[str, NDArray[Any]]

LIMIT = 4 << 30
"""Bytes that the arrays of a table may take."""

UNREADABLE = (OSError, EOFError, KeyError, ValueError, TypeError, SyntaxError, MemoryError, OverflowError, NotImplementedError, RuntimeError,
              struct.error, zipfile.BadZipFile, zlib.error, tokenize.TokenError)  # fmt: skip
"""What zipfile and numpy raise on a damaged file."""


@dataclass(frozen=True)
class Table:
    """All divergences of a space, `(N,)`, with its costs, and if known calibration and standard errors, expected losses, names (of each stage's choices)."""

    sizes: tuple[int, ...]
    divergence: Floats
    costs: CostTable
    calibration_errors: Floats | None = None
    stderr: Floats | None = None
    names: Mapping[str, Sequence[str]] | None = None
    expected_losses: Floats | None = None


def names_of(space: SearchSpace) -> dict[str, tuple[str, ...]]:
    """Stage name -> the names of its choices, the teacher's first."""
    return {stage.name: tuple(choice.name for choice in stage.choices) for stage in space.stages}


def name_arrays(names: Mapping[str, Sequence[str]]) -> dict[str, NDArray[Any]]:
    """The arrays that a table keeps names in."""
    widest = max(map(len, names.values()))
    return {"stage_names": np.array(list(names)), "choice_names": np.array([[*row, *[""] * (widest - len(row))] for row in names.values()])}


def read_table(path: Path) -> Table:
    """The checked content of a table file."""
    try:
        with zipfile.ZipFile(path) as file:
            members = [info.filename.removesuffix(".npy") for info in file.infolist()]
            if sum(info.file_size for info in file.infolist()) > LIMIT:
                raise ValueError(f"its arrays take more than {LIMIT:,} bytes")
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in members if _is_known(name)}
    except FileNotFoundError:
        raise InputError(f"no table file '{path}'; give the path of an .npz file") from None
    except UNREADABLE as error:
        raise InputError(f"table '{path}' must be an .npz file of plain arrays (numpy.savez_compressed): {error}") from None
    try:
        return parse_table(arrays)
    except InputError as error:
        raise InputError(f"table '{path}': {error}") from None


def write_table(path: Path, table: Table, more: Arrays | None = None) -> None:
    """Writes a table file, all at once or not at all, with `more` arrays that its readers ignore.

    Raises:
        InputError: the file cannot be written.
    """
    arrays: dict[str, Any] = {"sizes": np.array(table.sizes), "divergence": table.divergence}
    arrays |= {f"cost_{metric}": values for metric, values in table.costs.by_choice.items()}
    arrays |= {f"fixed_{metric}": value for metric, value in table.costs.fixed.items()}
    arrays |= {} if table.calibration_errors is None else {"calibration_error": table.calibration_errors}
    arrays |= {} if table.expected_losses is None else {"expected_loss": table.expected_losses}
    arrays |= {} if table.stderr is None else {"stderr": table.stderr}
    arrays |= {} if table.names is None else name_arrays(table.names)
    arrays |= more or {}
    partial = path.with_name(path.name + ".tmp")
    try:
        with partial.open("wb") as file:
            np.savez_compressed(file, **arrays)
        partial.replace(path)
    except OSError as error:
        raise InputError(f"cannot write table '{path}': {error}; free some space or give another path") from None


def parse_table(arrays: Arrays) -> Table:
    """A table from named arrays, every one checked."""
    sizes = _sizes(arrays)
    n, padded = math.prod(sizes), (len(sizes), max(sizes))
    divergence = _floats(arrays, "divergence", (n,))
    if np.isnan(divergence).any():
        first = int(np.isnan(divergence).argmax())
        raise InputError(f"'divergence' must not be NaN, got NaN at entry {first} (counted from 0); use inf for a failed measurement")
    used = np.arange(padded[1]) < np.array(sizes)[:, None]
    errors, expected = (_of_blocks(name, arrays, padded, used) for name in ("calibration_error", "expected_loss"))
    return Table(sizes, divergence, _costs(arrays, padded, used), errors, _stderr(arrays, n), _names(arrays, sizes), expected)


def _is_known(name: str) -> bool:
    known = {"sizes", "divergence", "calibration_error", "expected_loss", "stderr", "stage_names", "choice_names"}
    return name in known or name.startswith(("cost_", "fixed_"))


def _sizes(arrays: Arrays) -> tuple[int, ...]:
    if "sizes" not in arrays:
        raise InputError("array 'sizes' is missing; it holds the number of choices of each stage")
    sizes = arrays["sizes"]
    if sizes.ndim != 1 or not len(sizes) or not np.issubdtype(sizes.dtype, np.integer):
        raise InputError(f"'sizes' must hold one integer a stage, got shape {sizes.shape} of {sizes.dtype}")
    if sizes.min() < 1:
        raise InputError(f"'sizes' must be at least 1 everywhere, got {int(sizes.min())} for stage {int(sizes.argmin())} (counted from 0)")
    return tuple(sizes.tolist())


def _costs(arrays: Arrays, padded: tuple[int, int], used: NDArray[np.bool_]) -> CostTable:
    metrics = [name.removeprefix("cost_") for name in arrays if name.startswith("cost_")]
    if not metrics:
        raise InputError(f"at least one 'cost_<metric>' of shape {padded} must be there, got: {', '.join(arrays)}")
    lonely = [name for name in arrays if name in ("cost_", "fixed_") or (name.startswith("fixed_") and name.removeprefix("fixed_") not in metrics)]
    if lonely or "" in metrics:
        name = "cost_" if "" in metrics else lonely[0]
        lacks = "names no metric" if name in ("cost_", "fixed_") else f"has no 'cost_{name.removeprefix('fixed_')}' beside it"
        raise InputError(f"array '{name}' {lacks}; costs are arrays 'cost_<metric>', such as 'cost_params', each with or without its 'fixed_<metric>'")
    by_choice, fixed = {}, {}
    for metric in metrics:
        values = _floats(arrays, f"cost_{metric}", padded)
        _check_entries(f"cost_{metric}", values, used & ~(np.isfinite(values) & (values >= 0)))
        by_choice[metric] = np.where(used, values, np.nan)
        if f"fixed_{metric}" in arrays:
            fixed[metric] = float(_floats(arrays, f"fixed_{metric}", ()))
            if not 0 <= fixed[metric] < math.inf:
                raise InputError(f"'fixed_{metric}' must be finite and not negative, got {fixed[metric]}")
    return CostTable(by_choice, fixed)


def _of_blocks(name: str, arrays: Arrays, padded: tuple[int, int], used: NDArray[np.bool_]) -> Floats | None:
    """What is known of each block, 0 for the teacher's; None if there is no such array."""
    if name not in arrays:
        return None
    values = np.where(used, _floats(arrays, name, padded), np.nan)
    values[:, 0] = 0.0
    _check_entries(name, values, (values < 0) | np.isinf(values), ", or NaN where it is unknown")
    return values


def _stderr(arrays: Arrays, n: int) -> Floats | None:
    if "stderr" not in arrays:
        return None
    stderr = _floats(arrays, "stderr", (n,))
    _check_entries("stderr", stderr, ~(np.isfinite(stderr) & (stderr >= 0)))
    return stderr


def _names(arrays: Arrays, sizes: Sequence[int]) -> dict[str, tuple[str, ...]] | None:
    """The names of stages and choices, checked; None where the table has neither."""
    if "stage_names" not in arrays and "choice_names" not in arrays:
        return None
    known = name_arrays(names_of(SearchSpace.of_sizes("table", sizes)))
    stages, choices = (_texts(arrays, name, default) for name, default in known.items())
    _check_names("'stage_names'", stages.tolist())
    names = {stage: tuple(row[:size]) for stage, row, size in zip(stages.tolist(), choices.tolist(), sizes, strict=True)}
    for stage, row in names.items():
        _check_names(f"'choice_names' of stage '{stage}'", row)
        if row[0] != TEACHER:
            raise InputError(f"'choice_names' of stage '{stage}' must begin with '{TEACHER}', got '{row[0]}'")
    return names


def _texts(arrays: Arrays, name: str, default: NDArray[Any]) -> NDArray[Any]:
    values = arrays.get(name, default)
    if values.shape != default.shape or values.dtype.kind != "U":
        raise InputError(f"'{name}' must hold texts of shape {default.shape}, got shape {values.shape} of {values.dtype}")
    return values


def _check_names(where: str, names: Sequence[str]) -> None:
    """Raises if a name is empty, unprintable, in white space or there twice; says which."""
    seen: set[str] = set()
    for k, name in enumerate(names):
        if not name or name != name.strip() or not name.isprintable():
            raise InputError(f"{where} must be printable and not empty, without white space around, got {name!r} at {k} (counted from 0)")
        if name in seen:
            raise InputError(f"{where} must differ, got '{name}' twice")
        seen.add(name)


def _check_entries(name: str, values: Floats, wrong: NDArray[np.bool_], other: str = "") -> None:
    """Raises if an entry is wrong; names the first one."""
    if wrong.any():
        first = np.argwhere(wrong)[0].tolist()
        where = "stage {}, choice {}".format(*first) if len(first) == 2 else f"entry {first[0]}"
        raise InputError(f"'{name}' must be finite and not negative{other}, got {values[tuple(first)]:g} for {where} (counted from 0)")


def _floats(arrays: Arrays, name: str, shape: tuple[int, ...]) -> Floats:
    if name not in arrays:
        raise InputError(f"array '{name}' of shape {shape} is missing")
    values = arrays[name]
    if values.shape != shape or not np.issubdtype(values.dtype, np.number) or np.iscomplexobj(values):
        raise InputError(f"'{name}' must hold real numbers of shape {shape}, got shape {values.shape} of {values.dtype}")
    return values.astype(np.float64)


def outer_sum(table: Floats, sizes: Sequence[int]) -> Floats:
    """`sum_s table[s, a_s]` of all candidates, `(S, K) -> (N,)`, in a table's order."""
    total = np.zeros(1)
    for row, size in zip(table, sizes, strict=True):
        total = (total[:, None] + row[:size]).ravel()
    return total
