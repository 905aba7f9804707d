"""How likely it is that something better was left: P(any cheaper candidate is feasible), and how many are cheaper.

The most likely cheaper candidates are drawn jointly from each model; the others are taken to add to the union as these do, in proportion to their summed
probabilities.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.special import ndtr

from nas.optimizers.acquisition import Goal, feasibility
from nas.optimizers.beliefs import Belief
from nas.optimizers.enumeration import Ints
from nas.problem import Floats

JOINT = 384
DRAWS = 512
DOUBT = 8.0
"""Stated standard deviations are widened by 1 + DOUBT / trials: scales fitted to few trials are too sure."""


@dataclass(frozen=True, slots=True)
class Statement:
    """For one eps: the probability that a cheaper candidate than the winner is feasible, and the number of cheaper unmeasured candidates.

    With `at_most` that number counts some that bounds or rules forbid. With `any` there is no winner yet, nor a teacher within the bounds.
    """

    eps: float
    p_better: float
    n_cheaper: float
    at_most: bool = False
    any: bool = False

    def __str__(self) -> str:
        which, what = ("any", "") if self.any else ("a cheaper", "cheaper ")
        count = f"{'at most ' if self.at_most else ''}{self.n_cheaper:.3g} {what}candidates unmeasured"
        return f"P({which} candidate is feasible at {self.eps:g}) = {self.p_better:.2g}, {count}"


def for_one_eps(goal: Goal, e: int) -> Goal:
    """The goal at one eps alone, where every cheaper candidate counts the same."""
    return replace(goal, eps=(goal.eps[e],), best=(goal.best[e],), by_saving=False)


def probability_of_any(goal: Goal, x: Ints, seed: int) -> float:
    """P(at least one of the candidates is feasible) at the goal's only eps, `(n, S)`."""
    if not len(x):
        return 0.0
    single = np.exp(feasibility(goal, x)[0])
    likely = np.argsort(-single, kind="stable")
    single, head = single[likely], x[likely[:JOINT]]
    joint = sum(w * _union(belief, head, goal.eps[0], seed) for belief, w in zip(goal.beliefs, goal.weights, strict=True))
    joint = max(float(joint), float(single.max()))
    spread = float(single.sum() / single[:JOINT].sum()) if single[:JOINT].sum() > 0 else 1.0
    return float(1 - (1 - min(joint, 1.0)) ** spread)


def _union(belief: Belief, x: Ints, eps: float, seed: int) -> float:
    """P(any of the listed candidates is feasible) under one model.

    Draws share all but each candidate's own deviation, which is integrated out in closed form, so that small probabilities are smooth.
    """
    doubt = 1 + DOUBT / max(len(belief.gp.z), 1)
    own = doubt * belief.gp.noise_sd
    shared = doubt**2 * belief.gp.joint(torch.from_numpy(x)) - own**2 * np.eye(len(x))
    factor = np.linalg.cholesky(shared + (1e-6 * np.trace(shared) / len(x) + 1e-12) * np.eye(len(x)))
    draws = factor @ np.random.default_rng(seed).standard_normal((len(x), DRAWS))
    gap = (belief.threshold(eps) - belief.mean(x))[:, None] - draws
    none: Floats = np.prod(1 - ndtr(gap / own), axis=0)
    return float(1 - none.mean())


def count_cheaper(kept: Sequence[Ints], costs: Floats, best: float, bins: int = 20_000) -> float:
    """How many combinations cost less than `best`, by convolving the stages' costs on a grid; exact up to rounding to the grid's steps."""
    low = sum(float(costs[s, c].min()) for s, c in enumerate(kept))
    high = sum(float(costs[s, c].max()) for s, c in enumerate(kept))
    if best <= low:
        return 0.0
    step = max(high - low, 1e-300) / bins
    counts = np.zeros(bins + 1 + len(kept))
    counts[0] = 1.0
    for s, choices in enumerate(kept):
        shifts = np.round((costs[s, choices] - costs[s, choices].min()) / step).astype(np.int64)
        counts = np.asarray(sum(np.concatenate([np.zeros(k), counts[: len(counts) - k]]) for k in shifts))
    return float(counts[: int(np.ceil((best - low) / step))].sum())
