"""Synthetic landscapes like the measured ones: compounding losses, pair interactions, noise, free calibration errors, exact optimum known.

    M_g(a) = sum_s l_s[a_s] over the stages of a group,  w_s = l_s[a_s] / M_g,  q_st = sqrt(w_s w_t)
    x(a)   = sum_g M_g (1 + sum_{s<t} c_st q_st) exp(noise xi_g(a))        bracket at least 0.05
    L(a)   = 0.003 (x / x_mid)^(1 + compounding) - offset                  0 at the teacher

Up to `ONE_GROUP` combinations all stages form one group: everything interacts. Above, stages interact within groups of neighbours, so that the exact
optimum stays computable: per group the front of cost and x, merged. `x_mid` is the least x at half of what can be saved in parameters, so eps
of 0.001 to 0.007 are always worth searching. Like in measured spaces, stages cheap in parameters are the sensitive ones.

Symbols: `S` stages, `K` choices, `l (S, K)` losses of single swaps, `e (S, K)` calibration errors, `n` candidates.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Self, final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nas.errors import InputError
from nas.problem import CostTable, Floats, Problem
from nas.progress import Progress
from nas.protocols import Task
from nas.space import Candidate, SearchSpace
from nas.spaces.table import enumerated_optimum
from nas.trial import Measurement

ONE_GROUP: Final = 10_000_000
"""Up to this many combinations all stages interact."""

GROUP: Final = 5_000
"""Largest number of combinations of a group above that."""

MIDDLE: Final = 0.003
"""Divergence of the best candidate that saves half of what can be saved."""

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Landscape:
    """Divergences of all candidates, as the sum of one table a group of stages.

    Attributes:
        groups: the sizes of each group's stages.
        terms: each group's part of x, one number a combination, last stage fastest.
        middle: `x_mid`.
    """

    groups: tuple[tuple[int, ...], ...]
    terms: tuple[Floats, ...]
    middle: float
    compounding: float
    offset: float

    def divergence(self, candidates: ArrayLike) -> Floats:
        """L of each candidate, `(n, S) -> (n,)`."""
        rows = np.asarray(candidates)
        x, first = np.zeros(len(rows)), 0
        for sizes, term in zip(self.groups, self.terms, strict=True):
            x = x + term[np.ravel_multi_index(tuple(rows[:, first : first + len(sizes)].T), sizes)]
            first += len(sizes)
        return np.where(rows.any(axis=1), self.of_x(x), 0.0)

    def of_x(self, x: Floats) -> Floats:
        """L of candidates that are not the teacher."""
        scaled: Floats = MIDDLE * (x / self.middle) ** (1 + self.compounding) - self.offset
        return scaled

    def optimum(self, costs: Floats, eps: float) -> Candidate | None:
        """The cheapest candidate within eps by `costs (S, K)`, the teacher included; None if there is none."""
        front = merged_front(self.groups, self.terms, costs)
        within = np.flatnonzero((self.of_x(front.x) <= eps) | ~front.rows.any(axis=1))
        return tuple(front.rows[within[0]].tolist()) if len(within) else None


@dataclass(frozen=True)
class Front:
    """Combinations by rising cost, each with less x than all cheaper ones: `cost (n,)`, `x (n,)`, `rows (n, stages)`."""

    cost: Floats
    x: Floats
    rows: Integers

    @staticmethod
    def undominated(cost: Floats, x: Floats) -> NDArray[np.intp]:
        """Indices of the undominated among `n` points, by rising cost."""
        order = np.lexsort((x, cost))
        least = np.minimum.accumulate(x[order])
        kept: NDArray[np.intp] = order[np.append(True, x[order][1:] < least[:-1])]
        return kept

    def plus(self, other: "Front") -> Self:
        """The front of all sums of a point of each."""
        cost, x = np.add.outer(self.cost, other.cost).ravel(), np.add.outer(self.x, other.x).ravel()
        kept = self.undominated(cost, x)
        left, right = kept // len(other.cost), kept % len(other.cost)
        return type(self)(cost[kept], x[kept], np.concatenate([self.rows[left], other.rows[right]], axis=1))


def merged_front(groups: Sequence[tuple[int, ...]], terms: Sequence[Floats], costs: Floats) -> Front:
    """The front of the whole space: groups are independent, so a dominated part never belongs to an undominated whole."""
    front, first = None, 0
    for sizes, term in zip(groups, terms, strict=True):
        cost = outer_sum(costs[first : first + len(sizes)], sizes)
        kept = Front.undominated(cost, term)
        own = Front(cost[kept], term[kept], np.stack(np.unravel_index(kept, sizes), axis=1).astype(np.int64))
        front = own if front is None else front.plus(own)
        first += len(sizes)
    assert front is not None  # a space has at least one stage
    return front


def outer_sum(table: Floats, sizes: Sequence[int]) -> Floats:
    """`sum_s table[s, a_s]` of all combinations, last stage fastest."""
    total = np.zeros(1)
    for row, size in zip(table, sizes, strict=True):
        total = (total[:, None] + row[:size]).ravel()
    return total


@final
class SyntheticSpace:
    """A synthetic landscape to search; `settings` are all that decides it."""

    def __init__(self, name: str, landscape: Landscape, costs: CostTable, calibration_errors: Floats | None, settings: dict[str, object]) -> None:
        self._name = name
        self._landscape = landscape
        self._costs = costs
        self._calibration_errors = calibration_errors
        self._settings = settings

    @cached_property
    def space(self) -> SearchSpace:
        """Stages and choices."""
        return SearchSpace.of_sizes(self._name, [size for group in self._landscape.groups for size in group])

    def fingerprint(self) -> dict[str, str]:
        """The settings."""
        return {name: str(value) for name, value in self._settings.items()}

    def costs(self) -> CostTable:
        """Exact costs of every choice."""
        return self._costs

    def prepare(self, progress: Progress) -> Task:
        """The landscape as a task; there is nothing to wait for."""
        del progress
        return Task(self.space, self._costs, SyntheticEvaluator(self._landscape), self._calibration_errors)


@final
class SyntheticEvaluator:
    """Computes divergences from the landscape's formula."""

    def __init__(self, landscape: Landscape) -> None:
        self._landscape = landscape

    def measure(self, candidates: Sequence[Candidate], eps: Sequence[float] = ()) -> list[Measurement]:
        """One exact measurement a candidate."""
        del eps
        return [Measurement(float(value), n_samples=1) for value in self._landscape.divergence(candidates)] if candidates else []

    def optimum(self, problem: Problem, eps: float) -> Candidate | None:
        """The cheapest allowed candidate within eps, None when there is none.

        Raises:
            InputError: bounds or rules on a space that is too large to be listed.
        """
        if not problem.bounds and not problem.space.rules:
            return self._landscape.optimum(problem.costs.by_choice[problem.objective], eps)
        if len(self._landscape.terms) > 1:
            raise InputError(f"the optimum under bounds or rules is known up to {ONE_GROUP} candidates; '{problem.space.name}' is larger")
        divergence = self._landscape.of_x(self._landscape.terms[0])
        divergence[0] = 0.0
        return enumerated_optimum(problem, divergence, eps)


def make_synthetic(
    seed: int | str = 0,
    *,
    stages: int = 7,
    choices: int = 4,
    compounding: float = 0.1,
    interaction: float = 0.1,
    interaction_spread: float = 0.2,
    noise: float = 0.03,
    tails: float = math.inf,
    informativeness: float | None = 1.0,
    offset: float = 0.0,
) -> SyntheticSpace:
    """A random landscape, the same for the same arguments.

    Args:
        seed: decides all random numbers; `--space synthetic:7` passes it.
        stages: `S`.
        choices: `K`, the teacher included, in every stage.
        compounding: exponent beyond 1 of the sum of losses.
        interaction: mean of the pair coefficients `c_st`; negative ones cancel.
        interaction_spread: their standard deviation.
        noise: standard deviation of `xi`'s contribution, which no model of stages and pairs explains; 0.2 is much.
        tails: degrees of freedom of a Student t distribution for `xi` (above 2); infinite for a normal one.
        informativeness: correlation of log calibration errors with the log errors that losses follow from; None gives no calibration errors.
        offset: taken off every divergence but the teacher's, so that some become negative.
    """
    number = _seed(seed)
    if stages < 1 or choices < 1:
        raise InputError(f"a synthetic space needs at least 1 stage and 1 choice, got {stages} and {choices}")
    if informativeness is not None and not 0 <= informativeness <= 1:
        raise InputError(f"informativeness must be in 0..1, got {informativeness}")
    if tails <= 2:
        raise InputError(f"tails must be above 2 (the variance must exist), got {tails}")
    settings: dict[str, object] = {
        "seed": number, "stages": stages, "choices": choices, "compounding": compounding, "interaction": interaction,
        "interaction_spread": interaction_spread, "noise": noise, "tails": tails, "informativeness": informativeness, "offset": offset,
    }  # fmt: skip
    rng = np.random.default_rng(number)
    costs, error, loss = _stages(stages, choices, rng)
    coefficients = rng.normal(interaction, interaction_spread, (stages, stages))
    reported = _reported(error, informativeness, rng)
    groups = _groups(stages, choices)
    terms = _terms(groups, loss, coefficients, (noise, tails), rng)
    middle = _middle(merged_front(groups, terms, costs.by_choice["params"]))
    return SyntheticSpace(f"synthetic-{number}", Landscape(groups, terms, middle, compounding, offset), costs, reported, settings)


def _seed(seed: int | str) -> int:
    try:
        return int(seed)
    except ValueError:
        raise InputError(f"space 'synthetic:{seed}': the seed must be an integer") from None


def _stages(stages: int, choices: int, rng: np.random.Generator) -> tuple[CostTable, Floats, Floats]:
    """Costs, true calibration errors `(S, K)` and losses `(S, K)`.

    Loss = error x sensitivity of the stage x a deviation of each choice; log-sd about 0.8 and 0.3. Cheap stages are sensitive.
    """
    log_size = rng.normal(0, 0.6, (stages, 1))
    kept = np.sort(rng.uniform(0.05, 0.9, (stages, choices)), axis=1)[:, ::-1]
    kept[:, 0] = 1.0
    params = np.round(1e6 * np.exp(log_size) * kept)
    macs = np.round(1e9 * np.exp(rng.normal(0, 1, (stages, 1))) * kept ** rng.uniform(0.7, 1.3, (stages, 1)))
    error = (1 - kept) ** 1.5 * np.exp(rng.normal(0, 0.1, (stages, choices)))
    sensitivity = np.exp(-0.4 * log_size + rng.normal(0, 0.8, (stages, 1)))
    loss = error * sensitivity * np.exp(rng.normal(0, 0.3, (stages, choices)))
    fixed = {"params": round(0.1 * float(params[:, 0].sum())), "macs": round(0.1 * float(macs[:, 0].sum()))}
    return CostTable({"params": params, "macs": macs}, fixed), error, loss


def _reported(error: Floats, informativeness: float | None, rng: np.random.Generator) -> Floats | None:
    """Calibration errors whose logarithm has that correlation with the true ones'."""
    noise = rng.normal(size=error.shape)
    if informativeness is None or error.shape[1] == 1:
        return None
    log_error = np.log(np.where(error > 0, error, 1.0))
    centre, spread = log_error[:, 1:].mean(), log_error[:, 1:].std() or 1.0
    mixed = informativeness * (log_error - centre) + math.sqrt(1 - informativeness**2) * spread * noise
    reported: Floats = np.exp(centre + mixed)
    reported[:, 0] = 0.0
    return reported


def _groups(stages: int, choices: int) -> tuple[tuple[int, ...], ...]:
    if choices**stages <= ONE_GROUP:
        return ((choices,) * stages,)
    width = max(1, int(math.log(GROUP, choices)))
    return tuple((choices,) * len(range(first, min(first + width, stages))) for first in range(0, stages, width))


def _terms(groups: tuple[tuple[int, ...], ...], loss: Floats, coefficients: Floats, noise: tuple[float, float], rng: np.random.Generator) -> tuple[Floats, ...]:
    """Each group's `M_g (1 + sum c_st q_st) exp(noise xi)`."""
    terms, first = [], 0
    for sizes in groups:
        own = slice(first, first + len(sizes))
        term = _with_pairs(loss[own], coefficients[own, own], sizes)
        scale, tails = noise
        xi = rng.standard_normal(len(term)) if math.isinf(tails) else rng.standard_t(tails, len(term)) * math.sqrt((tails - 2) / tails)
        terms.append(term * np.exp(scale * xi))
        first += len(sizes)
    return tuple(terms)


def _with_pairs(loss: Floats, coefficients: Floats, sizes: tuple[int, ...]) -> Floats:
    """`M (1 + sum_{s<t} c_st sqrt(l_s l_t) / M)` of all combinations, at least `0.05 M`."""
    total = outer_sum(loss, sizes)
    root = [np.sqrt(loss[s]).reshape([-1 if axis == s else 1 for axis in range(len(sizes))]) for s in range(len(sizes))]
    pairs = np.zeros(sizes)
    for s in range(len(sizes)):
        for t in range(s + 1, len(sizes)):
            pairs += coefficients[s, t] * root[s] * root[t]
    bounded: Floats = np.maximum(total + pairs.ravel(), 0.05 * total)
    return bounded


def _middle(front: Front) -> float:
    """The least x at half of what can be saved; 1 where nothing can be."""
    half = (front.cost[0] + front.cost[-1]) / 2
    cheap = front.x[front.cost <= half]
    return float(cheap.min()) if len(cheap) and cheap.min() > 0 else 1.0
