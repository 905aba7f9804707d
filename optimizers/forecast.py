"""What fitted models say of the divergence in its own unit, and of the cost that another eps would give.

Symbols: `n` candidates, `m` models, `G` grid points, `D` draws.
"""

from collections.abc import Callable

import numpy as np
import torch
from scipy.special import ndtr

from nas.optimizers.acquisition import Goal
from nas.optimizers.beliefs import Belief, standard_deviation
from nas.optimizers.enumeration import Ints
from nas.optimizers.stopping import DOUBT
from nas.problem import Floats

LEVELS = (0.05, 0.5, 0.95)
GRID = np.geomspace(1e-3, 1e3, 601)
"""Divergences, in units of the search's typical eps, between which quantiles are interpolated."""
JOINT = 512
DRAWS = 400


def quantiles(goal: Goal, x: Ints, scale: float) -> Floats:
    """5 %, 50 % and 95 % quantiles of the divergence of candidates not yet measured, `(n, S) -> (n, 3)`, under the weighted models."""
    grid = scale * GRID
    cdf = np.zeros((len(x), len(grid)))
    for belief, weight in zip(goal.beliefs, goal.weights, strict=True):
        at = np.array([belief.threshold(float(value)) for value in grid])
        sd = _doubt(belief) * standard_deviation(belief, x)
        cdf += weight * ndtr((at[None] - belief.mean(x)[:, None]) / sd[:, None])
    rows = [np.interp(LEVELS, np.maximum.accumulate(row), np.log(grid)) for row in cdf]
    return np.exp(np.array(rows).reshape(len(x), len(LEVELS)))


def cheapest_cost(goal: Goal, x: Ints, cost: Callable[[Ints], Floats], measured: float, seed: int) -> Floats:
    """Draws of the cost of the cheapest feasible candidate at the goal's only eps, `(D,)`; at most `measured`.

    Args:
        goal: the models and one eps.
        x: the candidates worth drawing, most promising first, `(n, S)`.
        cost: of candidates.
        measured: the cost of the cheapest candidate known to be feasible, infinite without one.
        seed: of the draws.
    """
    head = x[:JOINT]
    if not len(head):
        return np.full(DRAWS, measured)
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(DRAWS, np.array(goal.weights) / sum(goal.weights))
    costs = cost(head)
    draws = []
    for belief, count in zip(goal.beliefs, counts, strict=True):
        covariance = _doubt(belief) ** 2 * belief.gp.joint(torch.from_numpy(head))
        factor = np.linalg.cholesky(covariance + (1e-8 * np.trace(covariance) / len(head) + 1e-12) * np.eye(len(head)))
        value = belief.mean(head)[:, None] + factor @ rng.standard_normal((len(head), count))
        draws.append(np.where(value <= belief.threshold(goal.eps[0]), costs[:, None], np.inf).min(axis=0))
    out: Floats = np.minimum(np.concatenate(draws), measured)
    return out


def _doubt(belief: Belief) -> float:
    """Widens stated deviations as the stopping statement does."""
    return 1 + DOUBT / max(len(belief.gp.z), 1)
