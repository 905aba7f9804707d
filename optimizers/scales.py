"""MAP scales and the exact posterior of a Gaussian process whose kernel is a sum of parts.

Symbols: `n` trials, `m` candidates, `C` parts; `z` `(n,)` centred observations, `V` `(n,)` known noise variances, `theta` log scales.
The noise scale (what the model leaves unexplained in each candidate, itself included) is one more part: the identity.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from scipy.optimize import minimize
from torch import Tensor

from nas.optimizers.kernels import Part, SumOfParts
from nas.problem import Floats

JITTER = 1e-8


@dataclass(frozen=True, slots=True)
class FittedGP:
    """A Gaussian process conditioned on trials: weights `alpha` = K^-1 z, factor `chol` of K, and what is left unexplained.

    `noise_sd` is the sd of each candidate's own deviation, part of every prediction of a candidate not yet measured.
    """

    kernel: SumOfParts
    x: Tensor
    z: Floats
    alpha: Floats
    chol: Floats
    known_noise: Floats
    noise_sd: float

    def cross(self, x: Tensor) -> Floats:
        """Prior covariance between candidates and trials, `(m, S) -> (m, n)`."""
        return covariance(self.kernel, x, self.x)

    def variance(self, x: Tensor) -> Floats:
        """Posterior variance of unseen candidates, their own deviation included, `(m, S) -> (m,)`."""
        prior = (self.kernel.variances.detach() @ self.kernel.diagonal(x)).numpy()
        half = solve_triangular(self.chol, self.cross(x).T, lower=True) if len(self.z) else np.zeros((0, len(x)))
        return np.asarray(np.maximum(prior - np.square(half).sum(0), 0.0) + self.noise_sd**2)

    def joint(self, x: Tensor) -> Floats:
        """Posterior covariance of unseen candidates with each other, own deviations included, `(m, S) -> (m, m)`."""
        prior = covariance(self.kernel, x, x) + self.noise_sd**2 * np.eye(len(x))
        if not len(self.z):
            return prior
        half = solve_triangular(self.chol, self.cross(x).T, lower=True)
        return np.asarray(prior - half.T @ half)

    def leave_one_out(self) -> tuple[Floats, Floats]:
        """Mean and variance of each trial's `z` given all others, `(n,), (n,)`: closed form from K^-1."""
        precision = np.diag(cho_solve((self.chol, True), np.eye(len(self.z))))
        return self.z - self.alpha / precision, 1 / precision


def covariance(kernel: SumOfParts, x1: Tensor, x2: Tensor) -> Floats:
    """The kernel's matrix with its current scales, `(n1, S), (n2, S) -> (n1, n2)`."""
    parts = kernel.parts(x1, x2)
    return np.asarray(torch.tensordot(kernel.variances.detach(), parts, dims=1))


def fit(kernel: SumOfParts, noise: Part, x: Tensor, z: Floats, known_noise: Floats, start: Floats | None = None) -> tuple[FittedGP, Floats]:
    """The GP at its MAP scales, and the log scales themselves `(C + 1,)`, noise last, to start the next fit from."""
    layout = [*kernel.layout, noise]
    centre = np.log([part.centre for part in layout])
    spread = np.array([part.spread for part in layout])
    theta = centre.copy() if start is None else start.copy()
    parts = np.concatenate([kernel.parts(x, x).numpy(), np.eye(len(z))[None]])
    free = spread > 0
    if len(z) > 1 and free.any():
        theta[free] = _map_scales(parts, z, known_noise, theta, centre, spread)
    kernel.set_scales(np.exp(theta[:-1]).tolist())
    return _condition(kernel, x, z, parts, known_noise, theta), theta


def _condition(kernel: SumOfParts, x: Tensor, z: Floats, parts: Floats, known_noise: Floats, theta: Floats) -> FittedGP:
    noise_sd = float(np.exp(theta[-1]))
    if not len(z):
        return FittedGP(kernel, x, z, z, np.zeros((0, 0)), known_noise, noise_sd)
    K = np.tensordot(np.exp(2 * theta), parts, axes=1) + np.diag(known_noise + JITTER)
    chol = np.linalg.cholesky(K)
    return FittedGP(kernel, x, z, cho_solve((chol, True), z), chol, known_noise, noise_sd)


def _map_scales(parts: Floats, z: Floats, known_noise: Floats, theta: Floats, centre: Floats, spread: Floats) -> Floats:
    """Minimises -log p(z | theta) - log p(theta) over the free log scales by L-BFGS with the closed-form gradient."""
    free = spread > 0
    n = len(z)
    fixed = np.tensordot(np.exp(2 * theta[~free]), parts[~free], axes=1) + np.diag(known_noise + JITTER)
    flat = parts[free].reshape(int(free.sum()), n * n)

    def objective(t: Floats) -> tuple[float, Floats]:
        variances = np.exp(2 * t)
        K = fixed + (variances @ flat).reshape(n, n)
        chol, _ = cho_factor(K, lower=True, check_finite=False)
        alpha = cho_solve((chol, True), z, check_finite=False)
        inverse = cho_solve((chol, True), np.eye(n), check_finite=False)
        pull = (t - centre[free]) / spread[free]
        value = 0.5 * float(z @ alpha) + float(np.log(np.diag(chol)).sum()) + 0.5 * float(pull @ pull)
        slope = variances * (flat @ (inverse - np.outer(alpha, alpha)).ravel()) + pull / spread[free]
        return value, slope

    bounds = [(c - 5 * s, c + 5 * s) for c, s in zip(centre[free], spread[free], strict=True)]
    found = minimize(objective, theta[free], jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 25, "gtol": 1e-3})
    return np.asarray(found.x)
