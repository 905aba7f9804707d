"""What the compounding model expects of single losses and of pairs before any trial, from whatever is known of the blocks.

Best are losses that were foreseen (`nas.evaluators.gauss_newton`), in the unit of L. Calibration errors order the choices of a stage and say little across
stages. Without either, costs and names are left (`nas.optimizers.hints`). Replaced blocks mostly add to each other's losses.

Symbols: `S` stages, `K` choices.
"""

import math
from dataclasses import dataclass

import numpy as np

from nas.optimizers.hints import Hints
from nas.optimizers.kernels import Part
from nas.problem import Floats, Problem

INTERACTION = 0.1
"""Pair coefficients expected where something is known of the blocks."""
BLIND = (Part("exponent", 0.15), Part("interaction", 0.3))
"""Scales where nothing is known: it may be no landscape of replaced blocks."""
FORESEEN = (
    Part("intercept", 0.5),
    Part("slope", 0.2),
    Part("traits", 0.1, 0.7),
    Part("stage", 0.3, 0.6),
    Part("choice", 0.2, 0.6),
)
"""Scales around losses that were foreseen."""
FARTHEST = math.log(1e12)
"""Log losses are foreseen at most so far from a typical eps: those in another unit must not end a search before it begins."""


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
        """What a problem tells; `scale` is a typical eps.

        Where calibration errors are known beside foreseen losses, `log_errors` leads from the one to the other: a power of -1 is the errors alone.
        """
        present = surrogates(problem)
        errors, foreseen = logs_of(problem.calibration_errors, present), logs_of(problem.expected_losses, present)
        ordered = np.zeros_like(present) if errors is None else centred(errors)
        if foreseen is None:
            return cls.from_errors(ordered, present, scale, hints.expected)
        middle = math.log(scale)
        foreseen = np.clip(foreseen, middle - FARTHEST, middle + FARTHEST)
        losses = present * np.exp(np.where(np.isnan(foreseen), np.nanmedian(foreseen) + ordered, foreseen))
        leading = np.zeros_like(present) if errors is None else np.where(np.isnan(foreseen + errors), 0.0, centred(foreseen) - ordered)
        return cls(losses, _alike(INTERACTION, present), leading, FORESEEN)

    @property
    def blind(self) -> bool:
        """Whether nothing is known of the blocks."""
        return self.scales == BLIND

    @classmethod
    def from_errors(cls, log_errors: Floats, present: Floats, scale: float, hinted: Floats | float = 0.0) -> "Expected":
        """From centred log calibration errors `(S, K)` (all 0: nothing is known), and from what costs tell of log losses `hinted` `(S, K)`."""
        told = bool(log_errors.any())
        losses = present * np.exp(log_errors + math.log(scale) + hinted)
        return cls(losses, _alike(INTERACTION if told else 0.0, present), log_errors * present, () if told else BLIND)


def _alike(coefficient: float, present: Floats) -> Floats:
    """The same coefficient for all pairs of blocks of different stages, `(S, S, K, K)`."""
    n_stages, k = present.shape
    pairs = np.full((n_stages, n_stages, k, k), coefficient)
    pairs[np.arange(n_stages), np.arange(n_stages)] = 0.0
    return pairs


def logs_of(values: Floats | None, present: Floats) -> Floats | None:
    """Logs of calibration errors or losses of surrogate blocks, `(S, K)`, NaN where unknown or absent; None when none is known.

    Zeros count as a thousandth of the least positive value.
    """
    if values is None:
        return None
    known = np.isfinite(values) & (present > 0) & (values >= 0)
    positive = values[known & (values > 0)] if known.any() else np.zeros(0)
    return np.where(known, np.log(np.where(known, np.maximum(values, 1e-3 * positive.min()), 1.0)), np.nan) if len(positive) else None


def centred(logs: Floats) -> Floats:
    """Logs minus their median, 0 where unknown."""
    return np.nan_to_num(logs - np.nanmedian(logs), nan=0.0)


def surrogates(problem: Problem) -> Floats:
    """1 for surrogate choices that exist, 0 for the teacher and padding, `(S, K)`."""
    k = np.arange(max(problem.space.sizes))
    return ((k[None] > 0) & (k[None] < np.array(problem.space.sizes)[:, None])).astype(np.float64)
