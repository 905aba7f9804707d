"""How unsure the compounding model is of single blocks, as a function of whole candidates that the coarse pass can afford.

A candidate's log L moves with the coefficients b + u_s[a_s] by their shares w_s = l_s[a_s] / M, which sum to 1, so that its variance is
sum_st w_s w_t Cov(b + u_s[a_s], b + u_t[a_t]): a table of pairs over M^2.

Symbols: `n` trials, `S` stages, `K` choices.
"""

import numpy as np
from scipy.linalg import solve_triangular

from nas.optimizers.enumeration import PairTable
from nas.optimizers.kernels import CompoundingKernel, one_hot
from nas.optimizers.scales import FittedGP
from nas.problem import Floats


def posterior_doubts(gp: FittedGP, kernel: CompoundingKernel) -> Floats:
    """Posterior covariance of b + u_s[k], `(S, K, S, K)`."""
    v = {part.name: float(value) for part, value in zip(kernel.layout, kernel.variances.detach(), strict=True)}
    n_stages, k = kernel.losses.shape
    stage, kind, errors = np.repeat(np.arange(n_stages), k), kernel.kinds.numpy().ravel(), kernel.log_errors.numpy().ravel()
    traits = kernel.traits.numpy().reshape(-1, n_stages * k)
    prior = v["stage"] * (stage[:, None] == stage) + v["choice"] * np.eye(n_stages * k)
    prior += v["traits"] * traits.T @ traits + v["kind"] * (kind[:, None] == kind) + v["slope"] * np.outer(errors, errors)
    if not len(gp.z):
        return np.asarray(prior + v["intercept"]).reshape(n_stages, k, n_stages, k)
    moved = one_hot(gp.x, kernel.shares(gp.x).share, k).numpy()  # (n, S K)
    half = solve_triangular(gp.chol, moved @ prior + v["intercept"], lower=True)
    return np.asarray(prior + v["intercept"] - half.T @ half).reshape(n_stages, k, n_stages, k)


def weighted_doubts(doubts: Floats, losses: Floats) -> PairTable:
    """M^2 times the variance of log L that comes from these doubts; `losses` `(S, K)`."""
    stages, choices = np.indices(losses.shape)
    pairs = 2 * (doubts * losses[:, :, None, None] * losses).transpose(0, 2, 1, 3)
    pairs[np.arange(len(losses)), np.arange(len(losses))] = 0.0
    return PairTable(np.square(losses) * doubts[stages, choices, stages, choices], pairs)
