"""What every fitted model of the divergence offers the search, and the record it is fitted to.

Each model works on its own scale t(L) (log, softened square root, asinh); `threshold` maps eps there, log scores are in units of L, so that models
can be compared.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from nas.optimizers.enumeration import Form, Ints
from nas.optimizers.scales import FittedGP
from nas.problem import Floats, Problem
from nas.trial import Trial


@dataclass(frozen=True, slots=True)
class Record:
    """Measured candidates other than the teacher: `x` `(n, S)`, divergences `y` `(n,)`, their standard errors `(n,)`; `scale`: a typical eps."""

    x: Ints
    y: Floats
    stderr: Floats
    scale: float

    @classmethod
    def of(cls, problem: Problem, trials: Sequence[Trial]) -> "Record":
        """The trials that have a finite divergence, in their order; the teacher is known and left out."""
        told = [t for t in trials if t.divergence is not None and math.isfinite(t.divergence) and any(t.candidate)]
        y = np.array([t.divergence for t in told], dtype=np.float64)
        stderr = np.array([t.noise if math.isfinite(t.noise) else 0.0 for t in told], dtype=np.float64)
        x = np.array([t.candidate for t in told], dtype=np.int64).reshape(len(told), len(problem.space.sizes))
        return cls(x, y, stderr, _typical(problem.eps, y))


def _typical(eps: Sequence[float], y: Floats) -> float:
    """Geometric mean of the positive eps; without one, the median size of the divergences, else 1."""
    positive = [e for e in eps if e > 0]
    if positive:
        return math.exp(sum(math.log(e) for e in positive) / len(positive))
    sizes = np.abs(y[y != 0])
    return float(np.median(sizes)) if len(sizes) else 1.0


class Belief(Protocol):
    """A fitted model of the divergence on its own scale."""

    @property
    def name(self) -> str: ...

    @property
    def gp(self) -> FittedGP: ...

    def threshold(self, eps: float) -> float:
        """The bound on the model's scale."""
        ...

    @property
    def forms(self) -> tuple[Form, ...]:
        """Functions of candidates that the mean, and what is told of the variance, are made of."""
        ...

    def combine(self, values: Sequence[Floats]) -> Floats:
        """The posterior mean from the values of the forms, element by element."""
        ...

    def told_variance(self, values: Sequence[Floats]) -> Floats:
        """The part of the posterior variance that differs most between candidates, from the values of the forms, element by element; 0 if none is told."""
        ...

    def log_scores(self) -> Floats:
        """Log density of each divergence given all other trials, `(n,)`."""
        ...

    def prior_mean(self, x: Tensor) -> Tensor:
        """What the model expects of listed candidates before any trial, `(m, S) -> (m,)`."""
        ...

    def mean(self, x: Ints) -> Floats:
        """Posterior mean of listed candidates, `(m, S) -> (m,)`."""
        ...


def standard_deviation(belief: Belief, x: Ints) -> Floats:
    """Posterior sd of listed unseen candidates, `(m, S) -> (m,)`."""
    return np.sqrt(belief.gp.variance(torch.from_numpy(x)))


def log_normal_density(value: Floats, mean: Floats, variance: Floats) -> Floats:
    """Log density of a normal distribution, element by element."""
    out: Floats = -0.5 * (np.square(value - mean) / variance + np.log(2 * np.pi * variance))
    return out
