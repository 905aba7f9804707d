"""The compounding-additive Gaussian process on log L.

    log L(a) = b + v(a) + beta (v(a) - log typical eps) + xi(a),   v(a) = log M(a) + h(Q(a)),   h(Q) = log(1 + Q)
    M(a) = sum_s l_s[a_s],  l_s[k] = exp(u_s[k]),  l_s[0] = 0,  w_s = l_s[a_s] / M
    Q(a) = sum_{s<t} c_st[a_s, a_t] sqrt(w_s w_t)
    u_s[k] = u0_s[k] + gamma d_sk + g_s + r_sk

so that L is a sum over stages plus pairs, raised to 1 + beta. u0, the c expected and d, centred logs that losses follow a power of, come from what is known of
the blocks (`nas.optimizers.expected`). b, beta, gamma, g, r are normal around 0, c around what is expected, with the scales of `CompoundingKernel`; xi is what
is left in each candidate. Gauss-Newton: log L is linearised at the expected coefficients of the sweep before, and an exact GP is fitted to what the linear
part must explain.

Symbols: `n` trials, `S` stages, `K` choices.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from nas.optimizers.beliefs import Record, log_normal_density
from nas.optimizers.doubts import posterior_doubts, weighted_doubts
from nas.optimizers.enumeration import Form, Ints, PairTable
from nas.optimizers.expected import Expected
from nas.optimizers.hints import Hints
from nas.optimizers.kernels import LEAST, CompoundingKernel, Part, Shares, all_pairs, interactions, one_hot
from nas.optimizers.scales import JITTER, FittedGP, fit
from nas.problem import Floats

SWEEPS = 8
TOLERANCE = 0.02
LARGEST_STEP = 2.0
TOLERABLE_BEND = 0.1
"""A sweep that bends more than this, and more than the one before, is refused and tried again at half the pace."""
NOISE = Part("unexplained", 0.1, 0.5)
LARGEST_LOG = 700.0  # its exponential is still finite
LEAST_SIGNAL = 2.0
"""Divergences below this many standard errors say nothing on the log scale; they enter on the scale of L."""


@dataclass(frozen=True, slots=True)
class Observed:
    """Trials on the log scale: `target` `(n,)`, its noise variance `(n,)`, and log |dL / dtarget| `(n,)`."""

    target: Floats
    variance: Floats
    log_slope: Floats


@dataclass(frozen=True, slots=True)
class Coefficients:
    """b, beta, gamma, u - u0 `(S, K)`, and c `(S, S, K, K)`, symmetric, without its diagonal."""

    intercept: float
    exponent: float
    slope: float
    step: Floats
    pairs: Floats

    def towards(self, other: "Coefficients", share: float) -> "Coefficients":
        """That share of the way to others; steps of at most `LARGEST_STEP`."""
        move = np.clip(other.step - self.step, -LARGEST_STEP, LARGEST_STEP)
        return Coefficients(
            self.intercept + share * (other.intercept - self.intercept),
            self.exponent + share * (other.exponent - self.exponent),
            self.slope + share * (other.slope - self.slope),
            self.step + share * move,
            self.pairs + share * (other.pairs - self.pairs),
        )


@dataclass(frozen=True)
class Compounding:
    """The fitted model: linearised at `at`, its posterior expectation `expected` (equal once the sweeps have converged)."""

    name: str
    gp: FittedGP
    at: Coefficients
    expected: Coefficients
    base: Floats
    observed: Observed
    scale: float

    @property
    def kernel(self) -> CompoundingKernel:
        """The kernel at the linearisation point."""
        kernel = self.gp.kernel
        assert isinstance(kernel, CompoundingKernel)
        return kernel

    @property
    def error_exponent(self) -> float:
        """The power of the calibration errors that losses follow: 1 expected, 0 if they say nothing."""
        return 1 + self.expected.slope

    def threshold(self, eps: float) -> float:
        """The log of eps; an eps of 0 counts as a thousandth of the typical one, since a log model cannot reach 0."""
        return math.log(max(eps, 1e-3 * self.scale))

    @cached_property
    def forms(self) -> tuple[Form, ...]:
        """M, M Q, and (M / scale)^2 times the variance that comes from doubts about single blocks."""
        return (*self._mean_forms, weighted_doubts(posterior_doubts(self.gp, self.kernel), self._losses / self.scale))

    @cached_property
    def _losses(self) -> Floats:
        out: Floats = self.base * np.exp(self.expected.step)
        return out

    @cached_property
    def _mean_forms(self) -> tuple[PairTable, PairTable]:
        root = np.sqrt(self._losses)
        return PairTable(self._losses), PairTable(np.zeros_like(root), self.expected.pairs * root[:, None, :, None] * root[None, :, None, :])

    def combine(self, values: Sequence[Floats]) -> Floats:
        total, crossing = values[:2]
        q = crossing / total
        out: Floats = np.log1p(np.maximum(q, LEAST))
        low = q < LEAST
        if low.any():
            out[low] += (q[low] - LEAST) / (1 + LEAST)
        out += np.log(total)
        out *= 1 + self.expected.exponent
        out += self.expected.intercept - self.expected.exponent * self.kernel.centre
        return out

    def told_variance(self, values: Sequence[Floats]) -> Floats:
        out: Floats = np.maximum(values[2], 0) / np.square(values[0] * (1 / self.scale))
        return out

    def prior_mean(self, x: Tensor) -> Tensor:
        return linear_start(self.kernel, self.at.step, x)

    def mean(self, x: Ints) -> Floats:
        return self.combine([form.at(x) for form in self._mean_forms])

    @cached_property
    def _bends(self) -> Floats:
        """How far the mean lies from what the linearised model fitted, at each trial `(n,)`."""
        fitted = self.gp.z - (self.gp.known_noise + self.gp.noise_sd**2 + JITTER) * self.gp.alpha
        return np.asarray(self.mean(self.gp.x.numpy()) - (self.observed.target - self.gp.z + fitted))

    @property
    def bend(self) -> float:
        """The root mean square of those distances: large where linearising was wrong."""
        return float(np.sqrt(np.square(self._bends).mean())) if len(self._bends) else 0.0

    def log_scores(self) -> Floats:
        mean, variance = self.gp.leave_one_out()
        return log_normal_density(self.gp.z, mean + self._bends, variance) - self.observed.log_slope


def linear_start(kernel: CompoundingKernel, step: Floats, x: Tensor) -> Tensor:
    """The linearised log L where all coefficients are as expected before any trial, `(n, S) -> (n,)`."""
    f = kernel.shares(x)
    expected = interactions(kernel.expected_pairs, x, f.root).sum(1) / 2
    return f.value - (f.share * torch.from_numpy(step)[torch.arange(x.shape[1]), x]).sum(1) - f.gain * (f.interaction - expected)


def expected_coefficients(gp: FittedGP, kernel: CompoundingKernel) -> Coefficients:
    """Posterior expectations: each is its prior variance times its feature's inner product with alpha."""
    v = {part.name: float(value) for part, value in zip(kernel.layout, kernel.variances.detach(), strict=True)}
    alpha = torch.from_numpy(gp.alpha)
    f = kernel.shares(gp.x)
    slope = v["slope"] * float(f.slope @ alpha)
    return Coefficients(
        intercept=v["intercept"] * float(alpha.sum()),
        exponent=v["exponent"] * float((f.value - kernel.centre) @ alpha),
        slope=slope,
        step=_expected_step(kernel, gp.x, alpha, f, v) + slope * kernel.log_errors.numpy(),
        pairs=_expected_pairs(kernel, gp.x, alpha * f.gain, f, v),
    )


def _expected_step(kernel: CompoundingKernel, x: Tensor, alpha: Tensor, f: Shares, v: dict[str, float]) -> Floats:
    n_stages, k = kernel.losses.shape
    stage = v["stage"] * (f.share.T @ alpha)[:, None]
    choice = v["choice"] * (one_hot(x, f.share, k).T @ alpha).reshape(n_stages, k)
    traits = v["traits"] * torch.einsum("nt,n,tsk->sk", f.traits, alpha, kernel.traits)
    kind = v["kind"] * (f.kinds.T @ alpha)[kernel.kinds]
    return np.asarray(stage + choice + traits + kind)


def _expected_pairs(kernel: CompoundingKernel, x: Tensor, alpha: Tensor, f: Shares, v: dict[str, float]) -> Floats:
    n_stages, k = kernel.losses.shape
    root = one_hot(x, f.root, k)
    by_choice = (root.T @ (root * alpha[:, None])).reshape(n_stages, k, n_stages, k).permute(0, 2, 1, 3)
    by_pair = (f.root.T @ (f.root * alpha[:, None]))[:, :, None, None]
    pairs = kernel.expected_pairs + v["interaction"] * (all_pairs(f.root) @ alpha) + v["pair"] * by_pair + v["pair_choice"] * by_choice
    pairs[torch.arange(n_stages), torch.arange(n_stages)] = 0.0
    return np.asarray(pairs)


def fit_compounding(prior: Expected, record: Record, hints: Hints | None = None) -> Compounding:
    """The model at its MAP scales.

    Args:
        prior: what is expected before any trial.
        record: the trials.
        hints: what else losses may follow.
    """
    at = Coefficients(0.0, 0.0, 0.0, np.zeros_like(prior.losses), prior.pairs)
    best, theta = _linearised(at, prior, hints, record, np.full(len(record.y), math.log(record.scale)), None)
    pace = 1.0
    for _ in range(SWEEPS - 1):
        if not len(record.y) or np.abs((best.expected.step - best.at.step) * (prior.losses > 0)).max() < TOLERANCE:
            break
        at = best.at.towards(best.expected, pace)
        model, theta = _linearised(at, prior, hints, record, best.mean(record.x), theta)
        if model.bend < max(best.bend, TOLERABLE_BEND):
            best = model
        else:
            pace /= 2
    return best


def _linearised(at: Coefficients, prior: Expected, hints: Hints | None, record: Record, predicted: Floats, theta: Floats | None) -> tuple[Compounding, Floats]:
    """The model linearised at given coefficients, and its log scales, found from `theta` on; `predicted` log L of the trials."""
    losses, log_errors, pairs = (torch.from_numpy(value) for value in (prior.losses, prior.log_errors, prior.pairs))
    traits, kinds = (None, None) if hints is None else (torch.from_numpy(hints.traits), torch.from_numpy(hints.kinds))
    kernel = CompoundingKernel(losses, log_errors, pairs, math.log(record.scale), traits, kinds, prior.scales)
    kernel.linearise(torch.from_numpy(prior.losses * np.exp(at.step)), torch.from_numpy(at.pairs), at.exponent)
    observed, x = observe(record, predicted), torch.from_numpy(record.x)
    z = observed.target - linear_start(kernel, at.step, x).numpy()
    gp, theta = fit(kernel, NOISE, x, z, observed.variance, theta)
    return Compounding("compounding", gp, at, expected_coefficients(gp, kernel), prior.losses, observed, record.scale), theta


def observe(record: Record, predicted: Floats) -> Observed:
    """Divergences as observations of log L, with their noise.

    A clear signal enters as log y with sd stderr / y. Zero, negative and drowned ones say little about log L: they enter through L = exp(f) linearised at
    the prediction f, with sd tau / exp(f), tau at least their own size.
    """
    clear = record.y > LEAST_SIGNAL * record.stderr
    y = np.where(clear, record.y, record.scale)
    expected = np.exp(np.minimum(predicted, LARGEST_LOG))
    tau = np.maximum(record.stderr, np.maximum(-record.y, 0.05 * record.scale))
    bent = predicted + np.clip((record.y - expected) / expected, -1.0, 1.0)
    return Observed(
        target=np.where(clear, np.log(y), bent),
        variance=np.square(np.where(clear, record.stderr / y, tau / expected)),
        log_slope=np.where(clear, np.log(y), predicted),
    )
