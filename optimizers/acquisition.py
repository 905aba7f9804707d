"""Expected worth of a saving subject to divergence <= eps, over every candidate of a region that is cheaper than the incumbents.

    score(a) = sum_e (best_e - P(a))_+^POWER sum_m weight_m Phi((t_m(eps_e) - mean_m(a)) / sd_m(a))

The coarse pass sees all candidates in blocks, in single precision, with nearly exact sd (what a model's forms tell of the variance, and a constant): a
candidate that lies more sd above eps than the cut at its saving cannot be among the best, so the normal distribution is evaluated for a few
thousand only. The best few hundred are scored again with exact sd.

Symbols: `n` candidates, `E` bounds eps, `m` models; costs are sums over stages (the fixed part of the metric left out everywhere).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import log_ndtr, logsumexp, ndtr

from nas.optimizers.beliefs import Belief, standard_deviation
from nas.optimizers.enumeration import Halved, Ints, PairTable, Region
from nas.problem import Floats

BLOCK = 1 << 15
SAMPLE = 4096
PROBES = 64
STEPS = np.concatenate([np.linspace(-6, 6, 49), np.geomspace(6.5, 1000, 24)])
"""Grid of distances above the bound in sd, from certain to hopeless, on which the screening cut is looked up."""
POWER = 0.6
"""Exponent of the saving: below 1, likely small savings come before unlikely large ones."""


@dataclass(frozen=True, slots=True)
class Limit:
    """A known additive metric that must not exceed `limit` (fixed part already taken off)."""

    table: PairTable
    limit: float


@dataclass(frozen=True, slots=True)
class Goal:
    """What a search over a region aims at: the beliefs and their weights, each eps and the cost to beat there, and the known limits.

    Without `by_saving` every cheaper candidate counts the same, whatever it saves.
    """

    beliefs: tuple[Belief, ...]
    weights: tuple[float, ...]
    eps: tuple[float, ...]
    best: tuple[float, ...]
    limits: tuple[Limit, ...] = ()
    by_saving: bool = True

    def log_feasibility(self, means: Sequence[Floats], sds: Sequence[Floats]) -> Floats:
        """Log probability of L <= eps under the weighted models, `(n,)` per model -> `(E, n)`."""
        terms = [
            np.log(weight) + log_ndtr((np.array([[belief.threshold(e)] for e in self.eps]) - mean) / sd)
            for belief, weight, mean, sd in zip(self.beliefs, self.weights, means, sds, strict=True)
        ]
        return np.asarray(logsumexp(np.stack(terms), axis=0))

    def log_score(self, cost: Floats, log_feasibility: Floats) -> Floats:
        """Log expected saving, `(n,), (E, n) -> (n,)`; -inf where nothing can be saved."""
        return np.asarray(logsumexp(self.log_gain(np.array(self.best)[:, None] - cost) + log_feasibility, axis=0))

    def log_gain(self, saving: Floats) -> Floats:
        """Log of what a saving is worth; -inf for none."""
        with np.errstate(divide="ignore"):
            out: Floats = POWER * np.log(np.maximum(saving, 0.0)) if self.by_saving else np.log((saving > 0).astype(np.float64))
            return out


def score(goal: Goal, x: Ints, cost: Floats) -> Floats:
    """Exact log score of listed candidates, `(n, S), (n,) -> (n,)`."""
    return goal.log_score(cost, feasibility(goal, x))


def feasibility(goal: Goal, x: Ints) -> Floats:
    """Exact log probability of L <= eps of listed unseen candidates, `(n, S) -> (E, n)`."""
    means = [belief.mean(x) for belief in goal.beliefs]
    return goal.log_feasibility(means, [standard_deviation(belief, x) for belief in goal.beliefs])


@dataclass(frozen=True, slots=True)
class View:
    """A belief on the halves of a region: its forms there, the variance that they do not tell, and the largest sd where it matters."""

    belief: Belief
    forms: tuple[Halved, ...]
    rest: float = 0.01
    widest: float = 1.0

    def block(self, rows: slice, n_columns: int) -> tuple[Floats, Floats]:
        """Mean and sd, `(rows, n_columns)` each."""
        return self._of([form.block(rows, n_columns) for form in self.forms])

    def at(self, i: Ints, j: Ints) -> Floats:
        """Mean and sd of listed candidates, `(2, n)`."""
        mean, sd = self._of([form.at(i, j) for form in self.forms])
        return np.stack([mean, np.broadcast_to(sd, mean.shape)]).astype(np.float64)

    def _of(self, values: Sequence[Floats]) -> tuple[Floats, Floats]:
        told = self.belief.told_variance(values)
        told += np.float32(self.rest)
        return self.belief.combine(values), np.sqrt(told, out=told)

    def matched(self, i: Ints, j: Ints, x: Ints) -> "View":
        """The same with the constant that fits the exact sd of listed candidates best."""
        exact = np.square(standard_deviation(self.belief, x))
        told = self.belief.told_variance([form.at(i, j) for form in self.forms])
        known = np.isfinite(told + exact)
        rest = max(float(np.median((exact - told)[known])) if known.any() else 0.0, self.belief.gp.noise_sd**2)
        return replace(self, rest=rest, widest=float(np.sqrt(max(exact.max(), rest))))


@dataclass(frozen=True, slots=True)
class Held:
    """Pairs of combinations that are still in the running, `(n,)` each, and every model's mean and sd there `(m, 2, n)`."""

    i: Ints
    j: Ints
    moments: Floats

    def __getitem__(self, which: Ints) -> "Held":
        return Held(self.i[which], self.j[which], self.moments[:, :, which])

    @classmethod
    def joined(cls, many: "Sequence[Held]") -> "Held":
        return cls(np.concatenate([h.i for h in many]), np.concatenate([h.j for h in many]), np.concatenate([h.moments for h in many], axis=2))


class Pass:
    """One coarse pass over the candidates of a region that are cheaper than the dearest incumbent."""

    def __init__(self, region: Region, goal: Goal, size: int) -> None:
        self.region = region
        self.goal = goal
        self.size = size
        self.limits = [(limit.table.halved(region), limit.limit * (1 + 1e-12)) for limit in goal.limits]
        room = max(goal.best) - region.fixed_cost - region.left_cost
        self.reach = np.searchsorted(region.right_cost, room, side="left")  # columns of each row that save something, falling
        self.reach = self.reach[: int(np.count_nonzero(self.reach))]
        self.n_cheaper = int(self.reach.sum())
        self.views: list[View] = []
        self.floor = -np.inf

    def run(self) -> Ints:
        """The `size` best candidates by coarse score, best first, `(n, S)`."""
        if not self.n_cheaper:
            return np.zeros((0, len(self.region.base)), dtype=np.int64)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            self._set_up()
            held = self._screen()
            score = self._score(held)
        order = np.argsort(-score, kind="stable")[: self.size]
        order = order[np.isfinite(score[order])]
        return self.region.candidates(held.i[order], held.j[order])

    def _set_up(self) -> None:
        """Matches each model's sd to exact ones of the most promising of a regular sample, then picks a floor for the score."""
        for belief in self.goal.beliefs:
            self.views.append(View(belief, tuple(form.halved(self.region).single() for form in belief.forms)))
        sample = self._sample()
        likely = np.argsort(-self._score(sample), kind="stable")[:PROBES]
        probes = self.region.candidates(sample.i[likely], sample.j[likely])
        likely, probes = likely[probes.any(axis=1)], probes[probes.any(axis=1)]
        if len(probes):
            self.views = [view.matched(sample.i[likely], sample.j[likely], probes) for view in self.views]
            sample = self._at(sample.i, sample.j)
        if self.size < self.n_cheaper:
            score = np.sort(self._score(sample))[::-1]
            self.floor = float(score[min(len(score) - 1, 2 * self.size * len(score) // self.n_cheaper + 4)])

    def _sample(self) -> Held:
        flat = np.unique(np.linspace(0, self.n_cheaper - 1, SAMPLE).astype(np.int64))
        ends = np.cumsum(self.reach)
        i = np.searchsorted(ends, flat, side="right")
        j = flat - (ends[i] - self.reach[i])
        held = self._at(i, j)
        within = np.ones(len(i), dtype=bool)
        for halved, limit in self.limits:
            within &= halved.at(i, j) <= limit
        return held[np.flatnonzero(within)] if within.any() else held

    def _at(self, i: Ints, j: Ints) -> Held:
        return Held(i, j, np.stack([view.at(i, j) for view in self.views]))

    def _score(self, held: Held) -> Floats:
        """Log scores with the coarse sd; on the log scale throughout only where plain probabilities underflow."""
        goal = self.goal
        cost = self.region.left_cost[held.i] + self.region.right_cost[held.j] + self.region.fixed_cost
        plain = np.zeros(len(cost))
        for eps, best in zip(goal.eps, goal.best, strict=True):
            likely = np.zeros(len(cost))
            for view, weight, (mean, sd) in zip(self.views, goal.weights, held.moments, strict=True):
                likely += weight * ndtr((view.belief.threshold(eps) - mean) / sd)
            plain += likely * np.exp(goal.log_gain(best - cost))
        on_log_scale = not (plain > 1e-200).any()
        score = goal.log_score(cost, goal.log_feasibility(list(held.moments[:, 0]), list(held.moments[:, 1]))) if on_log_scale else np.log(plain)
        return np.where(np.isnan(score), -np.inf, score)

    def _screen(self) -> Held:
        """All that may reach the floor; it rises whenever many have gathered."""
        table = self._cut_table()
        held = [Held(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros((len(self.views), 2, 0)))]
        start = n = 0
        while start < len(self.reach):
            n_columns = int(self.reach[start])
            rows = slice(start, min(len(self.reach), start + max(1, BLOCK // n_columns)))
            held.append(self._survivors(rows, n_columns, table))
            n += len(held[-1].i)
            if n > 64 * self.size:
                held = [self._best_of(Held.joined(held))]
                n = len(held[0].i)
                table = self._cut_table()
            start = rows.stop
        return Held.joined(held)

    def _best_of(self, held: Held) -> Held:
        """The `size` best, in order of position; the worst of them is the new floor."""
        score = self._score(held)
        best = np.sort(np.argpartition(-score, self.size)[: self.size])
        self.floor = max(self.floor, float(score[best].min()))
        return held[best]

    def _cut_table(self) -> tuple[Floats, list[Floats]]:
        """Savings on a grid `(G,)`, against the dearest incumbent, and how many sd above the loosest bound a model's mean may lie at each `(G,)`.

        A weighted sum over models reaches the floor only if one of its terms reaches an equal share of it. A model's score falls with that distance, so the
        largest that does is read off a grid; tighter bounds are taken to be as near as the largest sd makes them.
        """
        goal, top = self.goal, max(self.goal.best)
        cheapest = float(self.region.left_cost[0] + self.region.right_cost[0]) + self.region.fixed_cost
        grid = np.linspace(0.0, max(top - cheapest, 1e-300), 65)
        gain = goal.log_gain(grid - (top - np.array(goal.best))[:, None])  # (E, G)
        cuts = []
        for view, weight in zip(self.views, goal.weights, strict=True):
            thresholds = np.array([view.belief.threshold(eps) for eps in goal.eps])
            likely = log_ndtr((thresholds - thresholds.max())[:, None] / view.widest - STEPS)  # (E, steps)
            score = logsumexp(gain[:, :, None] + likely[:, None, :], axis=0)
            least = self.floor - np.log(weight * len(self.views)) - 0.02  # more than linear interpolation of the concave logarithm loses
            cuts.append(np.array([np.interp(-least, -row, STEPS, left=-np.inf, right=np.inf) for row in score]))
        return grid, cuts

    def _survivors(self, rows: slice, n_columns: int, table: tuple[Floats, list[Floats]]) -> Held:
        """The part of a block that lies under the cut of some model, within the limits."""
        grid, cuts = table
        saving = max(self.goal.best) - self.region.fixed_cost - self.region.left_cost[rows.start] - self.region.right_cost[:n_columns]
        at = np.minimum(np.searchsorted(grid, saving), len(grid) - 1)
        keep = np.zeros((rows.stop - rows.start, n_columns), dtype=bool)
        moments = [view.block(rows, n_columns) for view in self.views]
        for view, (mean, sd), cut in zip(self.views, moments, cuts, strict=True):
            loosest = max(view.belief.threshold(eps) for eps in self.goal.eps)
            keep |= mean <= np.float32(loosest) + cut[at].astype(np.float32) * sd
        for halved, limit in self.limits:
            keep &= halved.block(rows, n_columns) <= limit
        flat = np.flatnonzero(keep)
        taken = [[mean.ravel()[flat], np.broadcast_to(sd, mean.shape).ravel()[flat]] for mean, sd in moments]
        return Held(flat // n_columns + rows.start, flat % n_columns, np.array(taken, dtype=np.float64))
