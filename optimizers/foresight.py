"""What a measurement is worth for the one after it: looking a step ahead, blocks measured alone included.

    value(x) = score(x) + AHEAD E_y[max_a score(a | y)]

where y is the outcome at x, drawn at a few quantiles, and score(a | y) the expected worth of measuring `a` next. A block measured alone saves nothing more, but
tells how sensitive its stage is.

Symbols: `n` candidates, `E` bounds eps, `Q` quantiles.
"""

import numpy as np
import torch
from scipy.special import ndtr, ndtri

from nas.optimizers.acquisition import Goal
from nas.optimizers.beliefs import Belief
from nas.optimizers.enumeration import Ints
from nas.problem import Floats

QUANTILES = 6
NEXT = 128
"""Candidates considered for the measurement after."""


def foreseen(goal: Goal, x: Ints, cost: Floats, ahead: float) -> Floats:
    """Values of listed candidates, the most promising first, `(n, S), (n,) -> (n,)`; `ahead`: AHEAD."""
    out = np.zeros(len(x))
    for belief, weight in zip(goal.beliefs, goal.weights, strict=True):
        out += weight * _under(belief, goal, x, cost, ahead)
    return out


def _under(belief: Belief, goal: Goal, x: Ints, cost: Floats, ahead: float) -> Floats:
    mean, covariance = belief.mean(x), belief.gp.joint(torch.from_numpy(x))
    variance = np.diag(covariance)
    sd = np.sqrt(variance)
    z = ndtri((np.arange(QUANTILES) + 0.5) / QUANTILES)
    shift = covariance[:NEXT] / sd  # (a, x)
    left = np.sqrt(np.maximum(variance[:NEXT, None] - np.square(shift), 1e-4 * variance[:NEXT, None]))
    after = np.zeros((len(z), len(mean[:NEXT]), len(x)))
    now = np.zeros(len(x))
    for eps, best in zip(goal.eps, goal.best, strict=True):
        threshold = belief.threshold(eps)
        gain = np.exp(goal.log_gain(best - cost))
        now += gain * ndtr((threshold - mean) / sd)
        for q, node in enumerate(z):
            feasible = mean + sd * node <= threshold
            to_beat = np.where(feasible, np.minimum(cost, best), best)
            later = np.exp(goal.log_gain(to_beat[None, :] - cost[:NEXT, None]))
            after[q] += later * ndtr((threshold - mean[:NEXT, None] - shift * node) / left)
    own = np.arange(min(NEXT, len(x)))
    after[:, own, own] = 0.0
    return np.asarray(now + ahead * after.max(axis=1).mean(axis=0))
