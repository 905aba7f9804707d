"""What optimizers share: the candidates that are left, the log as one eps sees it, and whose turn it is.

The teacher is known to every optimizer, at divergence 0, and is never proposed.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from nas.problem import Problem
from nas.space import Candidate
from nas.trial import Trial

ENUMERABLE: Final = 100_000
"""Spaces of at most this many combinations are listed in full; above, candidates are drawn and rejected."""

Integers = NDArray[np.integer]


class CandidatePool:
    """Draws allowed candidates of a problem; small spaces are exhausted exactly, spaces of any size can be drawn from."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    @cached_property
    def listed(self) -> list[Candidate] | None:
        """Every allowed candidate, last stage fastest, or None above `ENUMERABLE` combinations."""
        if self.problem.space.n_candidates > ENUMERABLE:
            return None
        return as_candidates(self._keep(self.problem.space.enumerate()))

    def draw(self, taken: Iterable[Candidate], rng: np.random.Generator, n: int = 1) -> list[Candidate]:
        """At most `n` distinct allowed candidates outside `taken`, uniformly at random; fewer only when no more were found."""
        taken = set(taken)
        if self.listed is not None:
            left = [candidate for candidate in self.listed if candidate not in taken]
            return [left[i] for i in rng.permutation(len(left))[:n]]
        found: dict[Candidate, None] = {}
        for rows in self._batches(rng):
            for candidate in as_candidates(self._keep(rows)):
                if candidate not in taken and len(found) < n:
                    found[candidate] = None
            if len(found) == n:
                break
        return list(found)

    def _keep(self, rows: Integers) -> Integers:
        kept: Integers = rows[self.problem.allowed(rows)]
        return kept

    def _batches(self, rng: np.random.Generator, tries: int = 40, batch: int = 256) -> Iterator[Integers]:
        """Uniform batches, then batches repaired towards the bounds: tight bounds can leave too few to meet by chance."""
        sizes = self.problem.space.sizes
        for _ in range(tries):
            yield rng.integers(0, sizes, size=(batch, len(sizes)))
        for _ in range(tries):
            yield self._repaired(rng.integers(0, sizes, size=(batch, len(sizes))), rng)

    def _repaired(self, rows: Integers, rng: np.random.Generator) -> Integers:
        """The rows with stages set, in random order, to the choice that is cheapest in a bound which the row violates."""
        costs = self.problem.costs
        for row in rows:
            for s in rng.permutation(len(row)):
                broken = next((b for b in self.problem.bounds if costs.totals(row[None], b.metric)[0] > b.limit * (1 + 1e-12)), None)
                if broken is None:
                    break
                row[s] = int(np.nanargmin(costs.by_choice[broken.metric][s]))
        return rows


def as_candidates(rows: Integers) -> list[Candidate]:
    """Rows `(n, S)` as tuples of ints."""
    return [tuple(row) for row in rows.tolist()]


def told(problem: Problem, trials: Sequence[Trial], pending: Sequence[Candidate] = ()) -> set[Candidate]:
    """All candidates that must not be proposed: the teacher, what was measured or failed, and what is pending."""
    return {problem.space.teacher, *(trial.candidate for trial in trials), *pending}


@dataclass(frozen=True)
class Turn:
    """The log as an optimizer sees it that works on one eps at a time.

    Attributes:
        eps: whose turn it is; with several eps they take turns, so that each gets an even share of the measurements.
        log: complete trials in order, those made for another eps included; the teacher first unless it was measured.
        failed: candidates that have no divergence.
        pending: candidates that are being measured.
        taken: candidates that must not be proposed.
        rng: this turn's random numbers, a function of the seed and the number of trials told and pending.
    """

    problem: Problem
    eps: float
    log: tuple[Trial, ...]
    failed: tuple[Candidate, ...]
    pending: tuple[Candidate, ...]
    taken: frozenset[Candidate]
    rng: np.random.Generator

    @classmethod
    def of(cls, problem: Problem, seed: int, trials: Sequence[Trial], pending: Sequence[Candidate]) -> "Turn":
        """The turn that follows these trials."""
        turn = len(trials) + len(pending)
        log = [trial for trial in trials if trial.divergence is not None]
        teacher = problem.space.teacher
        if all(trial.candidate != teacher for trial in log):
            log.insert(0, Trial(-1, teacher, problem.costs.of(teacher), 0.0))
        return cls(
            problem,
            problem.eps[turn % len(problem.eps)],
            tuple(log),
            tuple(trial.candidate for trial in trials if trial.divergence is None),
            tuple(pending),
            frozenset(told(problem, trials, pending)),
            np.random.default_rng((seed, turn)),
        )

    @cached_property
    def divergences(self) -> dict[Candidate, float]:
        """Candidate -> divergence; infinite where the measurement failed."""
        return {**{trial.candidate: float(trial.divergence or 0.0) for trial in self.log}, **dict.fromkeys(self.failed, math.inf)}

    @cached_property
    def incumbent(self) -> Candidate | None:
        """The cheapest feasible allowed candidate (ties: the earlier one), or None."""
        feasible = [c for c, divergence in self.divergences.items() if divergence <= self.eps]
        allowed = [c for c, keep in zip(feasible, self.problem.allowed(feasible), strict=True) if keep] if feasible else []
        return min(allowed, key=self._cost, default=None)

    @cached_property
    def best_cost(self) -> float:
        """Cost of the incumbent, infinite while there is none."""
        return math.inf if self.incumbent is None else self._cost(self.incumbent)

    def open(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Those that may be proposed, in the given order."""
        left = [candidate for candidate in candidates if candidate not in self.taken]
        return [candidate for candidate, keep in zip(left, self.problem.allowed(left), strict=True) if keep] if left else []

    def promising(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Those that may be proposed and are cheaper than the incumbent, in the given order."""
        left = self.open(candidates)
        return [candidate for candidate, cost in zip(left, self.problem.cost(left), strict=True) if cost < self.best_cost] if left else []

    def _cost(self, candidate: Candidate) -> float:
        return float(self.problem.cost([candidate])[0])


class TurnTaking(ABC):
    """An optimizer that works on one eps at a time and proposes one candidate a turn."""

    def __init__(self, problem: Problem, seed: int = 0) -> None:
        self.problem = problem
        self.pool = CandidatePool(problem)
        self.seed = seed

    def propose(self, trials: Sequence[Trial], pending: Sequence[Candidate] = (), n: int = 1) -> list[Candidate]:
        """At most `n` new candidates, each seeing the earlier ones as pending; random ones where the method has none, empty once none is left."""
        proposed: list[Candidate] = []
        for _ in range(n):
            turn = Turn.of(self.problem, self.seed, trials, [*pending, *proposed])
            candidate = self._suggest(turn) or self._any(turn)
            if candidate is None:
                break
            proposed.append(candidate)
        return proposed

    @abstractmethod
    def _suggest(self, turn: Turn) -> Candidate | None:
        """The method's own next candidate: allowed and not taken; None when it has none."""

    def _any(self, turn: Turn) -> Candidate | None:
        """A random new candidate, cheaper than the incumbent where one is found."""
        drawn = self.pool.draw(turn.taken, turn.rng, 64)
        return next(iter([*turn.promising(drawn), *drawn]), None)


def neighbours(problem: Problem, candidate: Candidate) -> list[Candidate]:
    """All candidates that differ in exactly one stage, in stage and choice order."""
    return [
        (*candidate[:s], k, *candidate[s + 1 :])
        for s, size in enumerate(problem.space.sizes)
        for k in range(size)
        if k != candidate[s]
    ]  # fmt: skip
