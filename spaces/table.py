"""Spaces whose every divergence is known: `--space table:FILE.npz` (the format is in `nas.table`)."""

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import final

import numpy as np

from nas.problem import CostTable, Floats, Problem
from nas.progress import Progress
from nas.protocols import Task
from nas.space import Candidate, Choice, SearchSpace, Stage
from nas.table import Table, read_table
from nas.trial import Measurement


@final
class TableSpace:
    """A space to search whose evaluator looks divergences up."""

    def __init__(self, space: SearchSpace, table: Table, source: str) -> None:
        self._space = space
        self._table = table
        self._source = source

    @property
    def space(self) -> SearchSpace:
        """Stages and choices."""
        return self._space

    def fingerprint(self) -> dict[str, str]:
        """A hash of what the table was made from."""
        return {"table": self._source}

    def costs(self) -> CostTable:
        """The table's costs."""
        return self._table.costs

    def prepare(self, progress: Progress) -> Task:
        """The table as a task; there is nothing to wait for."""
        del progress
        return Task(self._space, self._table.costs, TableEvaluator(self._table), self._table.calibration_errors, self._table.expected_losses)


@final
class TableEvaluator:
    """Looks divergences up."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def measure(self, candidates: Sequence[Candidate], eps: Sequence[float] = ()) -> list[Measurement]:
        """One measurement a candidate; no divergence where the table's is not finite."""
        del eps
        return [self._measurement(int(np.ravel_multi_index(candidate, self._table.sizes))) for candidate in candidates]

    def optimum(self, problem: Problem, eps: float) -> Candidate | None:
        """The cheapest allowed candidate within eps, None when there is none."""
        return enumerated_optimum(problem, self._table.divergence, eps)

    def _measurement(self, index: int) -> Measurement:
        divergence = float(self._table.divergence[index])
        if not math.isfinite(divergence):
            return Measurement(None, reason=f"the table's divergence is {divergence}")
        return Measurement(divergence, 0.0 if self._table.stderr is None else float(self._table.stderr[index]), n_samples=1)


def enumerated_optimum(problem: Problem, divergence: Floats, eps: float, chunk: int = 1_000_000) -> Candidate | None:
    """The cheapest allowed candidate whose entry in `divergence (N,)` is at most eps (ties: the first), or None."""
    best: tuple[float, Candidate] | None = None
    feasible = np.flatnonzero(np.isfinite(divergence) & (divergence <= eps))
    for indices in np.split(feasible, range(chunk, len(feasible), chunk)):
        rows = np.stack(np.unravel_index(indices, problem.space.sizes), axis=1)
        cost = np.where(problem.allowed(rows), problem.cost(rows), np.inf)
        if len(cost) and math.isfinite(cost.min()) and (best is None or cost.min() < best[0]):
            best = float(cost.min()), tuple(rows[int(cost.argmin())].tolist())
    return best[1] if best else None


def _space(name: str, table: Table) -> SearchSpace:
    if table.names is None:
        return SearchSpace.of_sizes(name, table.sizes)
    return SearchSpace(name, tuple(Stage(stage, tuple(map(Choice, choices))) for stage, choices in table.names.items()))


def make_table(file: str) -> TableSpace:
    """The space of a table file, as `--space table:FILE.npz` names it.

    Raises:
        InputError: the file cannot be read, or an array is missing or malformed.
    """
    path = Path(file)
    table = read_table(path)
    return TableSpace(_space(path.stem, table), table, hashlib.sha256(path.read_bytes()).hexdigest()[:16])
