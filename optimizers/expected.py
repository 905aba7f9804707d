"""What the compounding model expects of single losses and of pairs before any trial, from whatever is known of the blocks.

Best is a Taylor expansion of the divergence: losses in its own unit, and how each two add up or cancel. Calibration errors order the choices of a stage and
say little across stages; replaced blocks mostly add to each other's losses. Without either, costs and names are left (`nas.optimizers.hints`).

Symbols: `S` stages, `K` choices.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nas.optimizers.hints import Hints
from nas.optimizers.kernels import Part
from nas.problem import Floats, Problem

INTERACTION = 0.1
"""Pair coefficients expected where calibration errors are known and a Taylor expansion is not."""
BLIND = (Part("exponent", 0.15), Part("interaction", 0.3))
"""Scales where nothing is known: it may be no landscape of replaced blocks."""
TAYLOR = (
    Part("intercept", 0.5),
    Part("slope", 0.1),
    Part("traits", 0.1, 0.7),
    Part("stage", 0.3, 0.6),
    Part("choice", 0.2, 0.6),
)
"""Scales around a Taylor expansion."""
TRUST = 0.5
"""Share of an expansion's pair coefficients that is expected: a few hundred random directions tell them roughly."""


@dataclass(frozen=True, slots=True)
class Expected:
    """`losses` `(S, K)` in the unit of L, 0 for the teacher and padding; `pairs` `(S, S, K, K)`, symmetric, 0 on its diagonal.

    `log_errors` `(S, K)`: centred logs that log losses follow a power of, 0 where unknown; `scales`: those that differ from the kernel's own.
    """

    losses: Floats
    pairs: Floats
    log_errors: Floats
    scales: tuple[Part, ...] = ()

    @classmethod
    def of(cls, problem: Problem, hints: Hints, scale: float) -> "Expected":
        """What a problem tells; `scale` is a typical eps."""
        present = surrogates(problem)
        if problem.taylor is None:
            errors = centred_log_errors(problem)
            return cls.from_errors(np.zeros_like(present) if errors is None else errors, present, scale, hints.expected)
        losses = problem.taylor.losses * present
        return cls(losses, TRUST * problem.taylor.pairs, _centred(losses, losses > 0), TAYLOR)

    @classmethod
    def from_errors(cls, log_errors: Floats, present: Floats, scale: float, hinted: Floats | float = 0.0) -> "Expected":
        """From centred log calibration errors `(S, K)` (all 0: nothing is known), and from what costs tell of log losses `hinted` `(S, K)`."""
        losses = present * np.exp(log_errors + math.log(scale) + hinted)
        n_stages, k = losses.shape
        pairs = np.full((n_stages, n_stages, k, k), INTERACTION if log_errors.any() else 0.0)
        pairs[np.arange(n_stages), np.arange(n_stages)] = 0.0
        return cls(losses, pairs, log_errors * present, () if log_errors.any() else BLIND)


def centred_log_errors(problem: Problem) -> Floats | None:
    """Log calibration error minus the median, `(S, K)`, 0 where unknown or absent; None when no error is known.

    Errors of 0 of a surrogate block count as a thousandth of the least positive one.
    """
    errors = problem.calibration_errors
    if errors is None:
        return None
    known = np.isfinite(errors) & (surrogates(problem) > 0) & (errors >= 0)
    positive = errors[known & (errors > 0)] if known.any() else np.zeros(0)
    return _centred(np.maximum(errors, 1e-3 * positive.min()), known) if len(positive) else None


def _centred(values: Floats, known: NDArray[np.bool_]) -> Floats:
    logs = np.log(np.where(known, values, 1.0))
    return np.where(known, logs - np.median(logs[known]) if known.any() else 0.0, 0.0)


def surrogates(problem: Problem) -> Floats:
    """1 for surrogate choices that exist, 0 for the teacher and padding, `(S, K)`."""
    k = np.arange(max(problem.space.sizes))
    return ((k[None] > 0) & (k[None] < np.array(problem.space.sizes)[:, None])).astype(np.float64)
