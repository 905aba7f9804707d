"""Is it the inference that costs measurements, or what cannot be known before? Searches with (nearly) exact Bayesian inference on synthetic landscapes.

    python benchmarks/exact_inference.py [--instances 16] [--chains 96]

Instances of `arena.py` with informative calibration errors, seeds for tuning. Instead of a linearised Gaussian process, Hamiltonian chains sample the
landscape's coefficients given the trials (started by randomise-then-optimise), and a candidate's probability is its mean over the chains, over the whole
space; acquisition as in `eps_gp`. Two kinds of prior knowledge:

    the law       the very distributions that the landscape was drawn from, its exponent and mean interaction exactly, and at which cost its middle lies
    the scales    the true spreads, but level, exponent and mean interaction as wide as `eps_gp` once took them (0 +- 2, 0 +- 0.15, 0 +- 0.3)

Prints one line of JSON a search and writes `results/exact_inference-DATE.json`. Symbols: `C` chains, `n` trials, `S` stages, `K` choices, `D` coefficients.
"""

import argparse
import json
import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import arena
import numpy as np
import torch
from dated import write_result
from torch import Tensor

from nas.compare import WITHIN
from nas.optimizers.acquisition import POWER
from nas.optimizers.enumeration import Ints
from nas.problem import Floats
from nas.spaces.landscape import _with_pairs
from nas.spaces.synthetic import SyntheticSpace, make_synthetic
from nas.table import outer_sum

STAGES, CHOICES, NOISE, COMPOUNDING, INTERACTION = 10, 4, 0.03, 0.1, 0.1
SENSITIVITY_SD, CHOICE_SD, PAIR_SD = 0.8, 0.3, 0.2
"""As in `nas.spaces.synthetic`."""


@dataclass(frozen=True)
class Prior:
    """Mean and sd of the level of log L, of the exponent beyond 1 and of the mean interaction, which turns around the log of eps."""

    level: tuple[float, float]
    exponent: tuple[float, float]
    interaction: tuple[float, float]


class Chains:
    """The coefficients of a landscape as `C` samples, standard normal before any trial: `(C, D)` -> log L and its derivatives."""

    def __init__(self, space: SyntheticSpace, eps: float, prior: Prior, n_chains: int, seed: int) -> None:
        self.base, self.log_eps, self.prior = centred_losses(space, eps), math.log(eps), prior
        self.random, self.n_chains = np.random.default_rng(seed), n_chains
        self.pairs = np.triu_indices(STAGES, 1)
        self.sd = (1 + COMPOUNDING) * NOISE
        ends = np.cumsum([1, 1, 1, STAGES, STAGES * (CHOICES - 1), len(self.pairs[0])])
        self.parts = [slice(a, b) for a, b in zip([0, *ends[:-1]], ends, strict=True)]
        self.size = int(ends[-1])

    def coefficients(self, z: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        """Level and exponent `(C,)`, log losses `(C, S, K)` and pair coefficients `(C, S, S)`."""
        level, exponent, mean = (m + sd * z[:, k] for k, (m, sd) in enumerate((self.prior.level, self.prior.exponent, self.prior.interaction)))
        log_loss = np.repeat(self.base[None], len(z), 0)
        log_loss[:, :, 1:] += SENSITIVITY_SD * z[:, self.parts[3], None] + CHOICE_SD * z[:, self.parts[4]].reshape(len(z), STAGES, CHOICES - 1)
        pairs = np.zeros((len(z), STAGES, STAGES))
        pairs[:, self.pairs[0], self.pairs[1]] = mean[:, None] + PAIR_SD * z[:, self.parts[5]]
        return level, exponent, log_loss, pairs + pairs.transpose(0, 2, 1)

    def log_l(self, z: Floats, x: Ints) -> tuple[Floats, Floats]:
        """Log L of trials and its derivatives, `(C, n)` and `(C, n, D)`."""
        level, exponent, log_loss, pairs = self.coefficients(z)
        loss = np.exp(np.minimum(log_loss[:, np.arange(STAGES), x], 300))
        root = np.sqrt(loss)
        crossing = (root @ pairs) * root
        total, cross = loss.sum(2), crossing.sum(2) / 2
        free = total + cross > 0.05 * total
        log_x = np.log(np.where(free, total + cross, 0.05 * total)) - self.log_eps
        power = (1 + exponent)[:, None, None]
        by_loss = power * np.where(free[..., None], (loss + crossing / 2) / (total + cross)[..., None], loss / total[..., None])
        by_pair = power * np.where(free[..., None], root[:, :, self.pairs[0]] * root[:, :, self.pairs[1]] / (total + cross)[..., None], 0.0)
        slope = np.zeros((*log_x.shape, self.size))
        slope[:, :, 0], slope[:, :, 1], slope[:, :, 2] = self.prior.level[1], self.prior.exponent[1] * log_x, self.prior.interaction[1] * by_pair.sum(2)
        slope[:, :, self.parts[3]] = SENSITIVITY_SD * by_loss
        for k in range(1, CHOICES):
            slope[:, :, self.parts[4].start + k - 1 : self.parts[4].stop : CHOICES - 1] = CHOICE_SD * by_loss * (x == k)
        slope[:, :, self.parts[5]] = PAIR_SD * by_pair
        return self.log_eps + level[:, None] + (1 + exponent)[:, None] * log_x, slope

    def posterior(self, x: Ints, y: Floats) -> Floats:
        """Samples given trials `(n, S)` with log divergences `(n,)`, `(C, D)`."""
        z = self.random.standard_normal((self.n_chains, self.size))
        if not len(y):
            return z
        with np.errstate(all="ignore"):  # a step that leaves all numbers is not taken
            return self._moved(self._nearest(z, x, y), x, y)

    def _nearest(self, z0: Floats, x: Ints, y: Floats) -> Floats:
        """Randomise, then optimise: nearest to draws of the prior, what explains the divergences with noise of their own."""
        target = y + self.sd * self.random.standard_normal((len(z0), len(y)))
        z, pace, (f, slope) = 0.3 * z0, np.ones(len(z0)), self.log_l(0.3 * z0, x)

        def distance(z: Floats, f: Floats) -> Floats:
            return np.asarray(np.square(z - z0).sum(1) + np.square((target - f) / self.sd).sum(1))

        now = distance(z, f)
        for _ in range(40):
            lacking = target - f + np.einsum("cnd,cd->cn", slope, z - z0)
            weights = np.linalg.solve(slope @ slope.transpose(0, 2, 1) + self.sd**2 * np.eye(len(y)), lacking[..., None])[..., 0]
            tried = z + pace[:, None] * (z0 + np.einsum("cnd,cn->cd", slope, weights) - z)
            f_tried, slope_tried = self.log_l(tried, x)
            then = distance(tried, f_tried)
            better = then < now
            settled = (np.abs(now - then) < 1e-3) | (pace < 1e-4)
            z, f, slope = np.where(better[:, None], tried, z), np.where(better[:, None], f_tried, f), np.where(better[:, None, None], slope_tried, slope)
            now, pace = np.where(better, then, now), np.where(better, np.minimum(1, 2 * pace), 0.4 * pace)
            if settled.all():
                break
        return z

    def _moved(self, z: Floats, x: Ints, y: Floats, rounds: int = 12) -> Floats:
        """Hamiltonian steps that leave the posterior as it is, preconditioned by the curvature at the likeliest sample."""

        def energy(z: Floats) -> tuple[Floats, Floats]:
            f, slope = self.log_l(z, x)
            return 0.5 * np.square(z).sum(1) + 0.5 * np.square((y - f) / self.sd).sum(1), z - np.einsum("cnd,cn->cd", slope, (y - f) / self.sd**2)

        value, gradient = energy(z)
        slope = self.log_l(z[[int(np.argmin(value))]], x)[1][0]
        inverse = np.linalg.inv(np.linalg.cholesky(np.eye(self.size) + slope.T @ slope / self.sd**2))
        step = 0.25
        for _ in range(rounds):
            momentum = self.random.standard_normal(z.shape)
            at, pull, speed = z, gradient, momentum - 0.5 * step * gradient @ inverse.T
            n_steps = int(self.random.integers(4, 9))
            for number in range(n_steps):
                at = at + step * speed @ inverse
                there, pull = energy(at)
                speed = speed - (step if number < n_steps - 1 else 0.5 * step) * pull @ inverse.T
            gained = value + 0.5 * np.square(momentum).sum(1) - there - 0.5 * np.square(speed).sum(1)
            taken = np.log(self.random.random(len(z))) < gained
            z, value, gradient = np.where(taken[:, None], at, z), np.where(taken, there, value), np.where(taken[:, None], pull, gradient)
            step *= 1.25 if taken.mean() > 0.8 else 0.7 if taken.mean() < 0.6 else 1.0
        return z

    def everywhere(self, z: Floats) -> Iterator[Tensor]:
        """Log L of all candidates under each sample, last stage fastest, `(K^(S/2), K^(S/2))`, in single precision."""
        half = STAGES // 2
        rows = np.indices((CHOICES,) * half).reshape(half, -1).T
        for level, exponent, log_loss, pairs in zip(*self.coefficients(z), strict=True):
            root = np.exp(np.minimum(log_loss, 300) / 2)
            left, right = root[np.arange(half), rows], root[half + np.arange(half), rows]
            sums = [np.square(side).sum(1) + 0.5 * ((side @ own) * side).sum(1) for side, own in ((left, pairs[:half, :half]), (right, pairs[half:, half:]))]
            rows_of, columns, *ends = (torch.from_numpy(part.astype(np.float32)) for part in (left @ pairs[:half, half:], right.T, *sums))
            x = (rows_of @ columns).add_(ends[0][:, None]).add_(ends[1])
            yield (x.clamp_(min=1e-12).log_() - self.log_eps).mul_(1 + float(exponent)).add_(self.log_eps + float(level))


def centred_losses(space: SyntheticSpace, eps: float) -> Floats:
    """Expected log losses before any trial `(S, K)`, their median at log eps, minus infinity for the teacher's."""
    task_errors, costs = space._calibration_errors, space.costs().by_choice["params"]
    assert task_errors is not None
    size = np.log(costs[:, :1] / 1e6)
    log_loss = np.log(np.where(task_errors > 0, task_errors, 1.0)) - 0.4 * size
    log_loss = log_loss - np.median(log_loss[:, 1:]) + math.log(eps)
    log_loss[:, 0] = -np.inf
    return np.asarray(log_loss)


def priors(space: SyntheticSpace, eps: float) -> dict[str, Prior]:
    """What is known before, by name."""
    loss, costs = np.exp(centred_losses(space, eps)), space.costs().by_choice["params"]
    cost = outer_sum(costs, space.landscape.groups[0])
    x = _with_pairs(loss, np.full((STAGES, STAGES), INTERACTION), space.landscape.groups[0])
    middle = float(x[cost <= (cost.min() + cost.max()) / 2].min())
    level = math.log(0.003 / eps) - (1 + COMPOUNDING) * math.log(middle / eps)
    return {
        "the law": Prior((level, 1.0), (COMPOUNDING, 0.0), (INTERACTION, 0.0)),
        "the scales": Prior((0.0, 2.0), (0.0, 0.15), (0.0, 0.3)),
    }


def search(space: SyntheticSpace, eps: float, prior: Prior, n_chains: int, seed: int, limit: int) -> dict[str, int | None]:
    """Measurements to 1 % regret and to the optimum; None above the limit."""
    sizes = space.landscape.groups[0]
    cost, divergence = outer_sum(space.costs().by_choice["params"], sizes), space.landscape.of_x(space.landscape.terms[0])
    divergence[0] = 0.0
    optimum, best = cost[divergence <= eps].min(), cost[0]
    chains, seen = Chains(space, eps, prior, n_chains, seed), [0]
    found: dict[str, int | None] = {"to 1 %": None, "exact": None}
    x, y = np.zeros((0, STAGES), dtype=np.int64), np.zeros(0)
    for count in range(1, limit + 1):
        likely = torch.zeros(len(cost))
        for f in chains.everywhere(chains.posterior(x, y)):
            likely += torch.special.ndtr(f.ravel().neg_().add_(math.log(eps)).div_(chains.sd))
        score = np.maximum(best - cost, 0.0) ** POWER * likely.numpy()
        score[seen] = -1.0
        seen.append(int(np.argmax(score)))
        x, y = np.array(np.unravel_index(seen[1:], sizes)).T, np.log(divergence[seen[1:]])
        best = min(best, cost[seen[-1]]) if divergence[seen[-1]] <= eps else best
        if found["to 1 %"] is None and best <= optimum + WITHIN * (cost[0] - optimum):
            found["to 1 %"] = count
        if best <= optimum:
            return {**found, "exact": count}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--instances", type=int, default=16)
    parser.add_argument("--first-seed", type=int, default=400, help="of the instances; reported ones begin at 1000")
    parser.add_argument("--chains", type=int, default=96)
    parser.add_argument("--trials", type=int, default=50)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for number in range(options.instances):
        seed, eps = options.first_seed + number, arena.EPS[number % len(arena.EPS)]
        space = make_synthetic(seed, stages=STAGES, choices=CHOICES)
        for knows, prior in priors(space, eps).items():
            rows.append({"seed": seed, "eps": eps, "knows": knows, **search(space, eps, prior, options.chains, seed, options.trials)})
            print(json.dumps(rows[-1]), flush=True)
    summary = {}
    for knows in dict.fromkeys(row["knows"] for row in rows):
        counts = [options.trials + 1 if row["to 1 %"] is None else row["to 1 %"] for row in rows if row["knows"] == knows]
        mean = math.exp(statistics.fmean(math.log(count) for count in counts))
        exact = sum(row["exact"] is not None for row in rows if row["knows"] == knows)
        summary[knows] = {"geometric mean": round(mean, 1), "median": statistics.median(counts), "exact": exact, "of": len(counts)}
    write_result("exact_inference", {"summary": summary, "searches": rows})


if __name__ == "__main__":
    main()
