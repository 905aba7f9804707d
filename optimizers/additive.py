"""Additive search: measure every swap alone, minimise the additive model exactly, repair (as [Puzzle] and [LANA] do).

Symbols: `S` stages, `K` choices, `N` candidates; `l (S, K)` divergence of each swap alone; `L` divergence of a candidate.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Final, final

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from nas.optimizers.pool import Turn, TurnTaking
from nas.problem import Floats, Problem
from nas.space import Candidate
from nas.table import outer_sum

ENUMERABLE: Final = 2_000_000
"""Up to this many combinations the minimum is found by listing them, above by mixed-integer programming."""


@final
class AdditiveSearch(TurnTaking):
    """Proposes all single swaps, then the cheapest candidate whose predicted divergence, `sum_s l_s[a_s]`, is within eps.

    The repair: candidates with several swaps first scale `l` by what the latest of them were more divergent than predicted, then correct
    it by the least change that explains what is left, so a miss is not repeated. Once no cheaper candidate is predicted to be feasible, the
    least divergent cheaper one is next. A swap that a bound or rule forbids alone, or that is still being measured, counts as the mean of
    the known ones; a failed one is excluded.

    Args:
        problem: what to minimise.
        seed: of random choices, of which it makes none.
        foreseen: takes the problem's expected losses for `l`, where it has any, and measures no swaps.
    """

    def __init__(self, problem: Problem, seed: int = 0, *, foreseen: bool = False) -> None:
        super().__init__(problem, seed)
        self._expected = problem.expected_losses if foreseen else None

    def _suggest(self, turn: Turn) -> Candidate | None:
        swaps = self._swaps() if self._expected is None else []
        return next(iter(turn.open(swaps)), None) or self._minimise(turn)

    def _swaps(self) -> list[Candidate]:
        teacher = self.problem.space.teacher
        return [(*teacher[:s], k, *teacher[s + 1 :]) for s, size in enumerate(self.problem.space.sizes) for k in range(1, size)]

    def _minimise(self, turn: Turn) -> Candidate | None:
        losses = repaired(self._losses(turn), turn)
        search = _by_listing if self.problem.space.n_candidates <= ENUMERABLE else _by_programming
        return search(losses, turn.eps, turn)

    def _losses(self, turn: Turn) -> Floats:
        """`l`, `(S, K)`: 0 for the teacher, infinite for failed swaps and in the padding."""
        sizes = self.problem.space.sizes
        losses = np.full((len(sizes), max(sizes)), np.inf)
        for s, size in enumerate(sizes):
            losses[s, :size] = np.nan
            losses[s, 0] = 0.0
        for swap in self._swaps():
            s = next(s for s, k in enumerate(swap) if k)
            expected = np.nan if self._expected is None else self._expected[s, swap[s]]
            losses[s, swap[s]] = turn.divergences.get(swap, expected)
        known = losses[:, 1:][np.isfinite(losses[:, 1:])]
        losses[np.isnan(losses)] = float(known.mean()) if known.size else 0.0
        return losses


def repaired(losses: Floats, turn: Turn, latest: int = 5) -> Floats:
    """`l` scaled and corrected so that it explains the measured candidates with several swaps; `l` itself without any.

    The scale is the geometric mean of measured over predicted divergence, at most a factor of 2 (more is no compounding but a model that does
    not hold, which is the correction's business); the correction `X^T (X X^T + I)^-1 r` shares each residual `r`
    among the swaps that the candidate made (`X`: one row a candidate, one column a swap).
    """
    several = [trial.candidate for trial in turn.log if sum(k > 0 for k in trial.candidate) > 1]
    rows = np.array([c for c in several if math.isfinite(_predicted(losses, c))], dtype=np.int64).reshape(-1, len(losses))
    if not len(rows):
        return losses
    predicted = np.array([_predicted(losses, row) for row in rows.tolist()])
    measured = np.array([turn.divergences[tuple(row)] for row in rows.tolist()])
    usable = (predicted > 0) & (measured > 0)
    log_ratio = (np.log(measured[usable]) - np.log(predicted[usable]))[-latest:].mean() if usable.any() else 0.0
    gamma = math.exp(np.clip(log_ratio, -math.log(2), math.log(2)))
    swaps = (rows[:, :, None] == np.arange(1, losses.shape[1])).reshape(len(rows), -1).astype(np.float64)
    correction = swaps.T @ np.linalg.solve(swaps @ swaps.T + np.eye(len(rows)), measured - gamma * predicted)
    scaled = gamma * losses
    scaled[:, 1:] += correction.reshape(len(losses), -1)
    return scaled


def _predicted(losses: Floats, candidate: Sequence[int]) -> float:
    return float(sum(losses[s, k] for s, k in enumerate(candidate)))


def _by_listing(losses: Floats, budget: float, turn: Turn) -> Candidate | None:
    """The cheapest candidate within the budget, else the least divergent one; always cheaper than the incumbent."""
    problem = turn.problem
    sizes = problem.space.sizes
    table = problem.costs.by_choice[problem.objective]
    cost = outer_sum(table, sizes) + problem.costs.fixed.get(problem.objective, 0.0)
    loss = outer_sum(losses, sizes)
    cheaper = np.flatnonzero((cost < turn.best_cost) & np.isfinite(loss))
    within = cheaper[loss[cheaper] <= budget]
    in_order = (rows[np.argsort(key[rows], kind="stable")] for rows, key in ((within, cost), (cheaper, loss)))
    for rows in in_order:
        for chunk in np.split(rows, range(64, len(rows), 64)):
            candidates = [tuple(row) for row in np.stack(np.unravel_index(chunk, sizes), 1).tolist()]
            promising = turn.promising(candidates)
            if promising:
                return promising[0]
    return None


def _by_programming(losses: Floats, budget: float, turn: Turn) -> Candidate | None:
    """The same by mixed-integer programming; taken candidates and those that break a rule are cut off one by one."""
    for least_divergent in (False, True):
        for candidate in _optima(losses, math.inf if least_divergent else budget, turn, least_divergent=least_divergent):
            if turn.promising([candidate]):
                return candidate
    return None


def _optima(losses: Floats, budget: float, turn: Turn, *, least_divergent: bool, tries: int = 20) -> Iterator[Candidate]:
    """Optimal candidates in order, each cut off after it was tried; at most `tries`."""
    problem = turn.problem
    sizes = problem.space.sizes
    columns = [(s, k) for s, size in enumerate(sizes) for k in range(size)]

    def vector(table: Floats) -> Floats:
        return np.array([table[s, k] if np.isfinite(table[s, k]) else 0.0 for s, k in columns])

    teacher = problem.costs.of(problem.space.teacher)
    scale = max(abs(teacher[problem.objective]), 1e-300)
    cost, loss = vector(problem.costs.by_choice[problem.objective]) / scale, vector(losses) / max(turn.eps, 1e-300)
    fixed = problem.costs.fixed.get(problem.objective, 0.0)
    one_each = np.array([[float(s == stage) for s, _ in columns] for stage in range(len(sizes))])
    rows, limits = [cost, loss], [(turn.best_cost - fixed) / scale - 1e-9, budget / max(turn.eps, 1e-300)]
    for bound in problem.bounds:
        unit = max(abs(bound.limit), 1e-300)
        rows.append(vector(problem.costs.by_choice[bound.metric]) / unit)
        limits.append((bound.limit - problem.costs.fixed.get(bound.metric, 0.0)) / unit)
    usable = Bounds(0, [float(np.isfinite(losses[s, k])) for s, k in columns])
    for _ in range(tries):
        constraints = [LinearConstraint(one_each, 1, 1), LinearConstraint(np.array(rows), -np.inf, limits)]
        solved = milp(loss if least_divergent else cost, integrality=np.ones(len(columns)), bounds=usable, constraints=constraints)
        if solved.x is None:
            return
        picked = np.round(solved.x) > 0.5
        yield tuple(k for (_, k), on in zip(columns, picked, strict=True) if on)
        rows.append(picked.astype(float))
        limits.append(len(sizes) - 1.0)
