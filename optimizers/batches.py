"""Several proposals at once: each is chosen as if the ones before it had come out as expected."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from nas.optimizers.acquisition import Goal, score
from nas.optimizers.enumeration import Ints
from nas.problem import Floats
from nas.space import Candidate


def select_batch(goal: Goal, x: Ints, cost: Floats, given: Sequence[Candidate], given_cost: Floats, n: int) -> Ints:
    """The `n` best of the listed candidates, one after the other, `(n, S)`; ties go to the lexicographically first.

    `given` candidates are under way. An outcome that is as expected leaves every mean where it is and shrinks the sd of what resembles it; where it is
    expected to be feasible its cost is the one to beat, unless nothing would be left to save.
    """
    order = np.lexsort((*x.T[::-1], -score(goal, x, cost)))
    if n == 1 and not given:
        return x[order[:1]]
    fantasy = Fantasy(goal, np.concatenate([np.array(given, dtype=np.int64).reshape(-1, x.shape[1]), x[order]]))
    for p, price in enumerate(given_cost):
        fantasy.take(p, float(price))
    costs = np.concatenate([given_cost, cost[order]])
    for _ in range(min(n, len(x))):
        p = fantasy.best(costs)
        fantasy.take(p, float(costs[p]))
    return fantasy.x[fantasy.taken[len(given) :]]


class Fantasy:
    """Joint beliefs over a list of candidates `(n, S)` that shrink as outcomes are imagined."""

    def __init__(self, goal: Goal, x: Ints) -> None:
        self.goal = goal
        self.x = x
        self.means = [belief.mean(x) for belief in goal.beliefs]
        self.covariances = [belief.gp.joint(torch.from_numpy(x)) for belief in goal.beliefs]
        self.taken: list[int] = []

    def _log_feasibility(self) -> Floats:
        sds = [np.sqrt(np.maximum(np.diag(covariance), 1e-12)) for covariance in self.covariances]
        return self.goal.log_feasibility(self.means, sds)

    def best(self, costs: Floats) -> int:
        """Position of the best candidate not yet taken."""
        score = self.goal.log_score(costs, self._log_feasibility())
        score[self.taken] = -np.inf
        if np.isfinite(score).any():
            return int(np.argmax(score))
        return next(p for p in range(len(self.x)) if p not in self.taken)

    def take(self, p: int, cost: float) -> None:
        """Imagines that candidate `p` comes out as expected."""
        feasible = self._log_feasibility()[:, p] > np.log(0.5)
        lowered = tuple(min(b, cost) if f else b for b, f in zip(self.goal.best, feasible, strict=True))
        self.goal = replace(self.goal, best=lowered)
        for covariance in self.covariances:
            column = covariance[:, p].copy()
            covariance -= np.outer(column, column) / max(float(column[p]), 1e-12)
        self.taken.append(p)
