"""Optimizers side by side on one task whose optimum is known: the engine of `nas compare`.

Every run is a fresh in-memory study. The teacher is free: it is the incumbent before the first measurement, at regret 1.

    regret = (cost of the best feasible candidate so far - optimum) / (teacher's cost - optimum);   0 if the optimum is the teacher
"""

import math
import multiprocessing
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from nas import arguments
from nas.errors import InputError
from nas.executor import CalibratesByBlock
from nas.names import check_makes_optimizers
from nas.problem import Bound, Floats, Problem
from nas.progress import Progress, Quiet
from nas.protocols import Optimizer, OptimizerFactory, Space, Task
from nas.space import Candidate
from nas.study import Study

if TYPE_CHECKING:
    from rich.table import Table

REPORTED = (10, 20, 50)
"""Measurements after which the regret is reported."""

WITHIN = 0.01
"""The regret that counts as good enough."""


@runtime_checkable
class KnowsOptimum(Protocol):
    """What a task's evaluator must offer besides `measure` to be compared on."""

    def optimum(self, problem: Problem, eps: float) -> Candidate | None:
        """The cheapest allowed candidate with divergence <= eps; None when there is none."""
        ...


@dataclass(frozen=True, slots=True)
class Row:
    """One optimizer at one eps.

    Attributes:
        regrets: after 0, 1, ..., `trials` measurements, `(seeds, trials + 1)`; a run that ended early keeps its last value.
        propose_cpu_s: mean CPU seconds of a proposal.
        duplicates: mean number of proposals a run that its sampler repeated and the optimizer replaced.
    """

    optimizer: str
    eps: float
    regrets: Floats
    propose_cpu_s: float
    duplicates: float = 0.0

    @property
    def evals_to_1pct(self) -> Floats:
        """Measurements until the regret is at most 1 %, `(seeds,)`; infinite where a run never got there."""
        reached = self.regrets <= WITHIN
        return np.where(reached.any(axis=1), reached.argmax(axis=1), np.inf)

    def regret_at(self, count: int) -> float | None:
        """Median regret after that many measurements; None when fewer were made."""
        return float(np.median(self.regrets[:, count])) if count < self.regrets.shape[1] else None

    @property
    def exact_share(self) -> float:
        """Share of runs that found the optimum itself."""
        return float((self.regrets[:, -1] <= 0).mean())

    def to_json(self) -> dict[str, Any]:
        """The row as `nas compare --json` prints it. A quantile is null when too few runs got there."""
        evals = self.evals_to_1pct
        return {
            "optimizer": self.optimizer,
            "eps": self.eps,
            "evals_to_1pct": {
                "median": quantile(evals, 0.5),
                "q25": quantile(evals, 0.25),
                "q75": quantile(evals, 0.75),
                "share": float(np.isfinite(evals).mean()),
            },
            "regret": {str(count): self.regret_at(count) for count in sorted({*REPORTED, self.regrets.shape[1] - 1})},
            "exact_share": self.exact_share,
            "propose_cpu_s": self.propose_cpu_s,
        }


def quantile(values: Floats, share: float) -> float | None:
    """The least value that at least this share of the values do not exceed; None when it is infinite."""
    value = float(np.quantile(values, share, method="inverted_cdf"))
    return value if math.isfinite(value) else None


@dataclass(frozen=True, slots=True)
class _Runs:
    """Runs to make, one a seed: all a worker process needs."""

    task: Task
    problem: Problem
    factory: OptimizerFactory
    seeds: Sequence[int]
    trials: int
    optimum: float


@dataclass(frozen=True, slots=True)
class _Outcome:
    regrets: list[float]
    cpu_s: float
    n_proposals: int
    duplicates: int


def compare(
    task: Task,
    eps: Sequence[float],
    optimizers: Mapping[str, OptimizerFactory],
    seeds: int = 20,
    trials: int = 50,
    *,
    jobs: int = 1,
    objective: str = "params",
    bounds: Sequence[Bound] = (),
    progress: Progress | None = None,
) -> list[Row]:
    """One row for each eps and optimizer, in the order given; each eps is a problem of its own.

    A run ends once it has found the optimum, since no later measurement changes its figures. With `jobs` above 1, runs go to that many
    processes of one thread each; the factories must then be importable by name.

    Raises:
        InputError: the task's optimum is not known, no candidate is feasible at an eps, or the bounds forbid a teacher that costs no more than the optimum.
        ContractError: an optimizer proposed a candidate outside the space or the bounds, or one twice.
    """
    seeds, trials, jobs = (arguments.whole(name, value, 1) for name, value in (("seeds", seeds), ("trials", trials), ("jobs", jobs)))
    arguments.instance("task", task, Task, "nas.names.resolve_space('synthetic:3').prepare(nas.progress.Quiet()) makes one")
    eps = [arguments.number("each eps", value, 0) for value in arguments.several("eps", eps, "[0.005]")]
    for name, factory in arguments.options("optimizers", optimizers, written=False).items():
        check_makes_optimizers(factory, f"optimizer '{name}'")
    bounds = [arguments.instance("each of bounds", bound, Bound, "nas.problem.Bound.parse makes one") for bound in arguments.several("bounds", bounds, "()")]
    together = 1 if jobs == 1 else math.ceil(seeds / jobs)
    cells: list[tuple[str, float]] = []
    work: list[_Runs] = []
    for value in eps:
        problem = task.problem((value,), objective, bounds)
        optimum = optimal_cost(task, problem)
        _check_regret(problem, optimum)
        for name, factory in optimizers.items():
            cells.append((name, value))
            shares = [range(seeds)[first : first + together] for first in range(0, seeds, together)]
            work += [_Runs(task, problem, factory, share, trials, optimum) for share in shares]
    outcomes = [outcome for share in _carry_out(work, jobs, progress or Quiet()) for outcome in share]
    return [_row(*cell, outcomes[i * seeds : (i + 1) * seeds]) for i, cell in enumerate(cells)]


def check_comparable(source: Space) -> None:
    """Raises where `compare` is bound to, before anything is prepared: a space whose blocks are calibrated has networks to measure, and no known optimum."""
    if isinstance(source, CalibratesByBlock):
        raise _unknown_optimum(source.space.name)


def _unknown_optimum(name: str) -> InputError:
    return InputError(
        f"the optimum of '{name}' is not known; compare on a benchmark space such as tocsr_table, or measure every candidate "
        "of a smaller one (a million at most) with 'nas tabulate' and compare on table:FILE.npz"
    )


def optimal_cost(task: Task, problem: Problem) -> float:
    """Cost of the cheapest allowed feasible candidate; the teacher is feasible."""
    if not isinstance(task.evaluator, KnowsOptimum):
        raise _unknown_optimum(task.space.name)
    best = task.evaluator.optimum(problem, problem.eps[0])
    teacher = task.space.teacher
    known = [candidate for candidate in (best, teacher) if candidate is not None and problem.allowed([candidate])[0]]
    if not known:
        raise InputError(f"no candidate of '{task.space.name}' satisfies the bounds at eps {problem.eps[0]}; relax them")
    return float(problem.cost(known).min())


def _check_regret(problem: Problem, optimum: float) -> None:
    """Raises where the teacher, which regret is measured from, is forbidden and no dearer than what is to be found."""
    teacher = problem.space.teacher
    cost = float(problem.cost([teacher])[0])
    if optimum >= cost and (broken := problem.broken(teacher)):
        raise InputError(
            f"regret is measured from the teacher, but {broken}, and the optimum within the bounds has {problem.objective} {optimum:.8g}, "
            f"the teacher {cost:.8g}; relax the bounds or minimise another cost"
        )


def _carry_out(work: list[_Runs], jobs: int, progress: Progress) -> Iterator[list[_Outcome]]:
    if jobs == 1:
        yield from map(_measured, progress.track(work, "runs"))
        return
    with _one_thread_each(), ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(_measured, runs) for runs in work]
        for future in progress.track(futures, "groups of runs"):
            yield future.result()


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Processes started meanwhile compute on one thread: numeric libraries read this when they are loaded."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def _measured(runs: _Runs) -> list[_Outcome]:
    return [_run(runs, seed) for seed in runs.seeds]


def _run(run: _Runs, seed: int) -> _Outcome:
    optimizer = run.factory(run.problem, seed=seed)
    study = Study(run.problem, optimizer, run.task.evaluator)
    teacher = float(run.problem.cost([run.task.space.teacher])[0])
    span = teacher - run.optimum
    best = teacher
    regrets = [_regret(best, run.optimum, span)]
    for count in range(1, run.trials + 1):
        if regrets[-1] <= 0 or study.run(count) in ("proof", "exhausted"):
            break
        incumbent = study.incumbent(run.problem.eps[0])
        best = min(best, incumbent.costs[run.problem.objective] if incumbent else math.inf)
        regrets.append(_regret(best, run.optimum, span))
    made = len(regrets) - 1
    return _Outcome(regrets + [regrets[-1]] * (run.trials - made), study.seconds_proposing, made, _duplicates(optimizer))


def _regret(cost: float, optimum: float, span: float) -> float:
    """0 up to rounding at the optimum; sums of the same costs in another order differ by rounding."""
    if span <= 0 or cost - optimum <= 1e-12 * abs(optimum):
        return 0.0
    return (cost - optimum) / span


def _duplicates(optimizer: Optimizer) -> int:
    return int(getattr(optimizer, "duplicates", 0))


def _row(name: str, eps: float, outcomes: Sequence[_Outcome]) -> Row:
    proposals = sum(outcome.n_proposals for outcome in outcomes)
    cpu_s = sum(outcome.cpu_s for outcome in outcomes) / max(1, proposals)
    regrets = np.array([outcome.regrets for outcome in outcomes])
    return Row(name, eps, regrets, cpu_s, float(np.mean([outcome.duplicates for outcome in outcomes])))


def render(rows: Sequence[Row]) -> "Table":
    """The rows as a table for the terminal."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    title = "measurements until the cost is within 1 % of the optimum (-: not within those allowed), and regret (0: the optimum, 1: the teacher)"
    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left")
    counts = sorted({count for row in rows for count, regret in row.to_json()["regret"].items() if regret is not None}, key=int)
    regrets = (f"regret\nat {count}" for count in counts)
    for header in ("eps", "optimizer", "to 1 %,\nmedian", "quartiles", "runs\nthere", *regrets, "optimum\nfound", "CPU s a\nproposal", "repeats\na run"):
        table.add_column(header, justify="left" if header == "optimizer" else "right", no_wrap=header in ("optimizer", "quartiles"))
    for row in rows:
        found = row.to_json()
        evals = found["evals_to_1pct"]
        table.add_row(
            f"{row.eps:g}", row.optimizer, _count(evals["median"]), f"{_count(evals['q25'])} .. {_count(evals['q75'])}", f"{evals['share']:.0%}",
            *("-" if found["regret"][count] is None else f"{found['regret'][count]:.3f}" for count in counts),
            f"{row.exact_share:.0%}", f"{row.propose_cpu_s:.3f}", f"{row.duplicates:.1f}",
        )  # fmt: skip
    return table


def _count(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"
