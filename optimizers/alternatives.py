"""Models of the divergence for landscapes that do not compound: signed additive effects, and a categorical Gaussian process.

Both admit divergences of 0 and below and use no calibration errors. Scales: the additive model works on a softened signed square root of L, the
categorical one on asinh, both smooth through 0 with slopes set by a typical eps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from nas.optimizers.beliefs import Record, log_normal_density
from nas.optimizers.enumeration import Form, Ints, PairTable, ProductSum
from nas.optimizers.kernels import AdditiveKernel, HammingKernel, Part, one_hot
from nas.optimizers.scales import FittedGP, fit
from nas.problem import Floats

NOISE = Part("unexplained", 0.2, 0.7)


def soft_root(y: Floats, scale: float) -> Floats:
    """sign(y) (sqrt(|y| / scale + 1/4) - 1/2): a square root of large values, the identity near 0."""
    out: Floats = np.sign(y) * (np.sqrt(np.abs(y) / scale + 0.25) - 0.5)
    return out


def soft_root_slope(y: Floats, scale: float) -> Floats:
    """Derivative of `soft_root` in y."""
    out: Floats = 0.5 / (scale * np.sqrt(np.abs(y) / scale + 0.25))
    return out


def soft_log(y: Floats, scale: float) -> Floats:
    """asinh(2 y / scale): a logarithm of large values, linear near 0."""
    out: Floats = np.arcsinh(2 * y / scale)
    return out


def soft_log_slope(y: Floats, scale: float) -> Floats:
    """Derivative of `soft_log` in y."""
    out: Floats = 2 / (scale * np.sqrt(1 + np.square(2 * y / scale)))
    return out


@dataclass(frozen=True)
class Additive:
    """Signed stage and pair effects on the scale of `soft_root`; the teacher is 0."""

    name: str
    gp: FittedGP
    slope: Floats
    scale: float

    def threshold(self, eps: float) -> float:
        return float(soft_root(np.array(eps), self.scale))

    @cached_property
    def forms(self) -> tuple[Form, ...]:
        return (self._table(),)

    def _table(self) -> PairTable:
        kernel = self.gp.kernel
        assert isinstance(kernel, AdditiveKernel)
        v = {part.name: float(value) for part, value in zip(kernel.layout, kernel.variances.detach(), strict=True)}
        x, alpha, k = self.gp.x, torch.from_numpy(self.gp.alpha), kernel.n_choices
        replaced = (x > 0).double()
        hot = one_hot(x, replaced, k)
        n_stages = x.shape[1]
        unary = v["choice"] * (hot.T @ alpha).reshape(n_stages, k) + v["stage"] * (replaced.T @ alpha)[:, None] + v["count"] * (replaced.sum(1) @ alpha)
        unary[:, 0] = 0.0
        pair = v["pair"] * (hot.T @ (hot * alpha[:, None])).reshape(n_stages, k, n_stages, k).permute(0, 2, 1, 3)
        pair[torch.arange(n_stages), torch.arange(n_stages)] = 0.0
        return PairTable(unary.numpy(), pair.numpy(), v["intercept"] * float(alpha.sum()))

    def combine(self, values: Sequence[Floats]) -> Floats:
        return values[0]

    def told_variance(self, values: Sequence[Floats]) -> Floats:
        return np.zeros(1, dtype=values[0].dtype)

    def prior_mean(self, x: Tensor) -> Tensor:
        return torch.zeros(len(x), dtype=torch.float64)

    def mean(self, x: Ints) -> Floats:
        return self._table().at(x)

    def log_scores(self) -> Floats:
        mean, variance = self.gp.leave_one_out()
        return log_normal_density(self.gp.z, mean, variance) + np.log(self.slope)


def fit_additive(record: Record, n_choices: int) -> Additive:
    """The additive model at its MAP scales."""
    slope = soft_root_slope(record.y, record.scale)
    z = soft_root(record.y, record.scale)
    gp, _ = fit(AdditiveKernel(n_choices), NOISE, torch.from_numpy(record.x), z, np.square(record.stderr * slope))
    return Additive("additive", gp, slope, record.scale)


@dataclass(frozen=True)
class Categorical:
    """A Gaussian process with Hamming kernels on the scale of `soft_log`; the teacher is one more observation, of 0."""

    name: str
    gp: FittedGP
    slope: Floats
    scale: float

    def threshold(self, eps: float) -> float:
        return float(soft_log(np.array(eps), self.scale))

    @cached_property
    def forms(self) -> tuple[Form, ...]:
        kernel = self.gp.kernel
        assert isinstance(kernel, HammingKernel)
        variances = kernel.variances.detach().numpy()
        x, alpha = self.gp.x.numpy(), self.gp.alpha
        n_stages, k = x.shape[1], kernel.n_choices
        same = x.T[:, None, :] == np.arange(k)[None, :, None]  # (S, K, n)
        first_stage = 1 + len(kernel.RATES)
        unary = np.stack([variances[first_stage + s] * (same[s] @ alpha) for s in range(n_stages)])
        by_kind = (2 * n_stages) ** -0.5 * variances[-2] * (kernel.counts(self.gp.x).numpy().T @ alpha)
        unary += by_kind[kernel.kinds.numpy()]
        gained = kernel.gained(self.gp.x).numpy()
        kind_pairs = variances[-1] / (2 * n_stages) * (gained.T @ (gained * alpha[:, None]))  # (J, J)
        swap = np.eye(len(kind_pairs))[kernel.kinds.numpy()]  # (S, K, J)
        swap -= swap[:, :1]
        pair = 2 * np.einsum("ski,ij,tlj->stkl", swap, kind_pairs, swap, optimize=True)
        unary += pair[np.arange(n_stages), np.arange(n_stages), np.arange(k)[:, None], np.arange(k)[:, None]].T / 2
        pair[np.arange(n_stages), np.arange(n_stages)] = 0.0
        table = PairTable(unary, pair, float(variances[0] * alpha.sum()))
        factors = np.concatenate([np.where(same, 1.0, rate) for rate in kernel.RATES], axis=2)
        weights = np.concatenate([variances[1 + i] * alpha for i in range(len(kernel.RATES))])
        return (ProductSum(table, weights, factors),)

    def combine(self, values: Sequence[Floats]) -> Floats:
        return values[0]

    def told_variance(self, values: Sequence[Floats]) -> Floats:
        return np.zeros(1, dtype=values[0].dtype)

    def prior_mean(self, x: Tensor) -> Tensor:
        return torch.zeros(len(x), dtype=torch.float64)

    def mean(self, x: Ints) -> Floats:
        return np.asarray(self.gp.cross(torch.from_numpy(x)) @ self.gp.alpha)

    def log_scores(self) -> Floats:
        mean, variance = self.gp.leave_one_out()
        return log_normal_density(self.gp.z[1:], mean[1:], variance[1:]) + np.log(self.slope)


def fit_categorical(record: Record, n_choices: int, kinds: Ints | None = None) -> Categorical:
    """The categorical model at its MAP scales; `kinds` `(S, K)` as in `nas.optimizers.hints`."""
    n_stages = record.x.shape[1]
    slope = soft_log_slope(record.y, record.scale)
    x = torch.from_numpy(np.concatenate([np.zeros((1, n_stages), dtype=np.int64), record.x]))
    z = np.concatenate([np.zeros(1), soft_log(record.y, record.scale)])
    noise = np.concatenate([np.zeros(1), np.square(record.stderr * slope)])
    gp, _ = fit(HammingKernel(n_stages, n_choices, None if kinds is None else torch.from_numpy(kinds)), NOISE, x, z, noise)
    return Categorical("categorical", gp, slope, record.scale)
