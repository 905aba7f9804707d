"""A synthetic landscape: compounding losses, pair interactions and noise, with its exact optimum.

    M_g(a) = sum_s l_s[a_s] over the stages of a group,  w_s = l_s[a_s] / M_g,  q_st = sqrt(w_s w_t)
    x(a)   = sum_g M_g (1 + sum_{s<t} c_st q_st) exp(noise xi_g(a))        bracket at least 0.05
    L(a)   = 0.003 (x / x_mid)^(1 + compounding) - offset                  0 at the teacher

Up to `ONE_GROUP` combinations all stages form one group: everything interacts. Above, stages interact within groups of neighbours, so that the exact
optimum stays computable: per group the front of cost and x, merged. `x_mid` is the least x at half of what can be saved in parameters, so eps
of 0.001 to 0.007 are always worth searching.

Symbols: `S` stages, `K` choices, `l (S, K)` losses of single swaps, `c (S, S)` pair coefficients, `n` candidates.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nas.problem import Floats
from nas.space import Candidate
from nas.table import outer_sum

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


def grouped(stages: int, choices: int) -> tuple[tuple[int, ...], ...]:
    """Numbers of choices by stage, stages gathered into groups that can be listed whole."""
    if choices**stages <= ONE_GROUP:
        return ((choices,) * stages,)
    width = max(1, int(math.log(GROUP, choices)))
    return tuple((choices,) * len(range(first, min(first + width, stages))) for first in range(0, stages, width))


def make_terms(
    groups: tuple[tuple[int, ...], ...], loss: Floats, coefficients: Floats, noise: tuple[float, float], rng: np.random.Generator
) -> tuple[Floats, ...]:
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


def middle_of(front: Front) -> float:
    """The least x at half of what can be saved; 1 where nothing can be."""
    half = (front.cost[0] + front.cost[-1]) / 2
    cheap = front.x[front.cost <= half]
    return float(cheap.min()) if len(cheap) and cheap.min() > 0 else 1.0
