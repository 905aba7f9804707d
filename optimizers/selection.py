"""Which model of the divergence to believe: all are fitted to the same trials, and weighted by how well they foresaw each other's trials."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nas.optimizers.alternatives import fit_additive, fit_categorical
from nas.optimizers.beliefs import Belief, Record
from nas.optimizers.compounding import Compounding, fit_compounding
from nas.optimizers.expected import Expected
from nas.optimizers.hints import Hints
from nas.problem import Floats, Problem

PRIOR = {"compounding": 0.8, "additive": 0.05, "categorical": 0.15}
"""Weights before any trial where something is known of the blocks."""
BLIND_PRIOR = {"compounding": 0.35, "additive": 0.2, "categorical": 0.45}
"""The same where nothing is: nothing says that the landscape is one of replaced blocks."""
FIRST_COMPARISON = 5
"""Trials from which models are compared; before, the first one is believed."""
LEAST_WEIGHT = 0.05
LEAST_EXPONENT = 0.5
"""Power of the calibration errors in the losses from which they are trusted to order choices."""


@dataclass(frozen=True, slots=True)
class Weighted:
    """Fitted models with their weights, heaviest first; those of no weight are left out."""

    beliefs: tuple[Belief, ...]
    weights: tuple[float, ...]

    @property
    def trusts_errors(self) -> bool:
        """Whether calibration errors are believed to order the choices of a stage."""
        return isinstance(self.beliefs[0], Compounding) and self.beliefs[0].error_exponent >= LEAST_EXPONENT


def believe(problem: Problem, record: Record) -> Weighted:
    """All models that have weight after the trials of the record."""
    hints = Hints.of(problem)
    expected = Expected.of(problem, hints, record.scale)
    compounding = fit_compounding(expected, record, hints)
    if len(record.y) < FIRST_COMPARISON:
        return Weighted((compounding,), (1.0,))
    k = max(problem.space.sizes)
    beliefs: list[Belief] = [compounding, fit_additive(record, k), fit_categorical(record, k, hints.kinds)]
    prior = np.array([(BLIND_PRIOR if expected.blind else PRIOR)[belief.name] for belief in beliefs])
    weights = pooled_weights([belief.log_scores() for belief in beliefs], prior)
    order = [int(m) for m in np.argsort(-weights, kind="stable") if weights[m] >= LEAST_WEIGHT]
    kept = weights[order] / weights[order].sum()
    return Weighted(tuple(beliefs[m] for m in order), tuple(kept.tolist()))


def pooled_weights(scores: Sequence[Floats], prior: Floats, strength: float = 4.0) -> Floats:
    """Weights of models that maximise the leave-one-out log score of their mixture, with a Dirichlet prior worth `strength` trials.

    Args:
        scores: log density of each trial under each model, `(n,)` each.
        prior: weights before any trial, `(models,)`, summing to 1.
        strength: how many trials the prior outweighs.
    """
    log_density = np.stack(scores, axis=1)
    if not len(log_density):
        return prior
    density = np.exp(log_density - log_density.max(axis=1, keepdims=True))
    weights = prior.copy()
    for _ in range(50):
        share = density * weights
        share /= share.sum(axis=1, keepdims=True)
        weights = (share.sum(axis=0) + strength * prior) / (len(density) + strength)
    return weights
