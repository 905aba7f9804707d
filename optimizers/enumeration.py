"""Functions of whole spaces as sums over two halves of the stages: values of millions of candidates without listing them.

A candidate is a pair (i, j): combination i of the left stages, combination j of the right ones. Every function that matters here is
`left[i] + right[j] + sum_r A[i, r] B[r, j]`: costs (no third term), pairwise tables (r: choices of the right stages), products over stages
(r: trials). A block of it costs one outer sum and one matrix product.

Symbols: `S` stages, `K` choices, `N1`, `N2` combinations of the halves, `R` rank of the cross term.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from nas.problem import Floats, Problem
from nas.space import Candidate

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Halved:
    """A function on all candidates of a region: `left` `(N1,)`, `right` `(N2,)`, and the cross term's factors `(N1, R)`, `(R, N2)` or None."""

    left: Floats
    right: Floats
    rows: Floats | None = None
    columns: Floats | None = None

    def block(self, rows: slice, n_columns: int) -> Floats:
        """Values of some left combinations with the first right ones, `(rows, n_columns)`."""
        out: Floats = self.left[rows, None] + self.right[None, :n_columns]
        if self.rows is not None and self.columns is not None:
            out += self.rows[rows] @ self.columns[:, :n_columns]
        return out

    def at(self, i: Ints, j: Ints) -> Floats:
        """Values of listed candidates, `(n,), (n,) -> (n,)`."""
        out: Floats = self.left[i] + self.right[j]
        if self.rows is not None and self.columns is not None:
            out += np.einsum("nr,rn->n", self.rows[i], self.columns[:, j])
        return out

    def single(self) -> "Halved":
        """The same in single precision, for screening."""
        return Halved(*(None if part is None else part.astype(np.float32) for part in (self.left, self.right, self.rows, self.columns)))  # type: ignore[arg-type]


class Form(Protocol):
    """A function of candidates that splits over two halves of the stages."""

    def halved(self, region: "Region") -> Halved: ...


class Region:
    """Candidates that agree with `base` except in the free stages, each half sorted by its objective.

    Args:
        kept: choice indices left in each stage, sorted.
        base: the choices of the stages that are not free.
        free: the free stages; None = all.
        costs: objective by choice `(S, K)`.
    """

    def __init__(self, kept: Sequence[Ints], costs: Floats, base: Candidate, free: Sequence[int] | None = None) -> None:
        self.base = np.asarray(base, dtype=np.int64)
        self.free = tuple(range(len(base))) if free is None else tuple(free)
        self.fixed = tuple(s for s in range(len(base)) if s not in self.free)
        self.left_stages, self.right_stages = split_evenly(self.free, [len(kept[s]) for s in range(len(base))])
        self.left, self.left_cost = _sorted_combinations(kept, costs, self.left_stages)
        self.right, self.right_cost = _sorted_combinations(kept, costs, self.right_stages)
        self.fixed_cost = float(sum(costs[s, self.base[s]] for s in self.fixed))

    @property
    def size(self) -> int:
        """Number of candidates."""
        return len(self.left) * len(self.right)

    def candidates(self, i: Ints, j: Ints) -> Ints:
        """The candidates at pairs of combinations, `(n,), (n,) -> (n, S)`."""
        rows = np.tile(self.base, (len(i), 1))
        rows[:, list(self.left_stages)] = self.left[i]
        rows[:, list(self.right_stages)] = self.right[j]
        return rows


def split_evenly(stages: Sequence[int], sizes: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Two groups of stages with nearly the same number of combinations: largest stages first, each to the smaller group."""
    groups: tuple[list[int], list[int]] = ([], [])
    logs = [0.0, 0.0]
    for s in sorted(stages, key=lambda s: (-sizes[s], s)):
        g = int(logs[1] < logs[0])
        groups[g].append(s)
        logs[g] += float(np.log(sizes[s]))
    return tuple(sorted(groups[0])), tuple(sorted(groups[1]))


def _sorted_combinations(kept: Sequence[Ints], costs: Floats, stages: Sequence[int]) -> tuple[Ints, Floats]:
    """All combinations of some stages `(N, S')` and their costs, cheapest first, ties in lexicographic order."""
    if not stages:
        return np.zeros((1, 0), dtype=np.int64), np.zeros(1)
    grid = np.indices([len(kept[s]) for s in stages]).reshape(len(stages), -1)
    rows = np.stack([kept[s][g] for s, g in zip(stages, grid, strict=True)], axis=1)
    cost = np.sum([costs[s, rows[:, i]] for i, s in enumerate(stages)], axis=0)
    order = np.argsort(cost, kind="stable")
    return rows[order], cost[order]


@dataclass(frozen=True, slots=True)
class PairTable:
    """`f(a) = constant + sum_s unary[s, a_s] + sum_{s<t} pair[s, t, a_s, a_t]`; `pair` `(S, S, K, K)` is symmetric, or None."""

    unary: Floats
    pair: Floats | None = None
    constant: float = 0.0

    def halved(self, region: Region) -> Halved:
        unary, constant = self._given(region)
        left = _unary_sums(unary, region.left_stages, region.left) + constant
        right = _unary_sums(unary, region.right_stages, region.right)
        if self.pair is None:
            return Halved(left, right)
        left = left + _inner_pairs(self.pair, region.left_stages, region.left)
        right = right + _inner_pairs(self.pair, region.right_stages, region.right)
        if not region.left_stages or not region.right_stages:
            return Halved(left, right)
        across = self.pair[np.ix_(region.left_stages, region.right_stages)]
        rows = np.sum([across[i][:, region.left[:, i]] for i in range(len(region.left_stages))], axis=0)
        one_hot = np.arange(unary.shape[1])[None, :, None] == region.right.T[:, None, :]
        return Halved(left, right, rows.transpose(1, 0, 2).reshape(len(left), -1), one_hot.reshape(-1, len(right)).astype(np.float64))

    def _given(self, region: Region) -> tuple[Floats, float]:
        """Unary terms of the free stages and the constant once the fixed stages have their choices."""
        unary, constant = self.unary, self.constant
        fixed, choices = list(region.fixed), region.base[list(region.fixed)]
        constant += float(unary[fixed, choices].sum())
        if self.pair is None or not fixed:
            return unary, constant
        towards = self.pair[:, fixed, :, choices]  # (fixed, S, K)
        constant += float(towards[:, fixed, choices].sum()) / 2
        return unary + towards.sum(0), constant

    def at(self, x: Ints) -> Floats:
        """Values of listed candidates, `(n, S) -> (n,)`."""
        stages = np.arange(x.shape[1])
        out: Floats = self.constant + self.unary[stages, x].sum(1)
        return out if self.pair is None else out + _inner_pairs(self.pair, tuple(stages), x)


def _unary_sums(unary: Floats, stages: Sequence[int], rows: Ints) -> Floats:
    return np.asarray(sum((unary[s, rows[:, i]] for i, s in enumerate(stages)), np.zeros(len(rows))))


def _inner_pairs(pair: Floats, stages: Sequence[int], rows: Ints) -> Floats:
    """Pair terms within one half, `(N, S') -> (N,)`."""
    out = np.zeros(len(rows))
    for i, s in enumerate(stages):
        for j in range(i + 1, len(stages)):
            out += pair[s, stages[j]][rows[:, i], rows[:, j]]
    return out


@dataclass(frozen=True, slots=True)
class ProductSum:
    """`f(a) = table(a) + sum_r weights[r] prod_s factors[s, a_s, r]`, `factors` `(S, K, R)`."""

    table: PairTable
    weights: Floats
    factors: Floats

    def halved(self, region: Region) -> Halved:
        plain = self.table.halved(region)
        weights = self.weights * np.prod([self.factors[s, region.base[s]] for s in region.fixed], axis=0)
        rows = _products(self.factors, region.left_stages, region.left) * weights
        columns = _products(self.factors, region.right_stages, region.right).T
        if plain.rows is not None and plain.columns is not None:
            rows, columns = np.concatenate([rows, plain.rows], axis=1), np.concatenate([columns, plain.columns])
        return Halved(plain.left, plain.right, rows, columns)


def _products(factors: Floats, stages: Sequence[int], rows: Ints) -> Floats:
    """Product over the stages of one half, `(N, S') -> (N, R)`."""
    out = np.ones((len(rows), factors.shape[2]))
    for i, s in enumerate(stages):
        out *= factors[s, rows[:, i]]
    return out


CLEARLY = 2.0
"""Factor between calibration errors from which the larger one is believed to mean the larger loss."""


def kept_choices(problem: Problem, keep_dominated: bool, trust_errors: bool) -> list[Ints]:
    """Choices of each stage that are not dominated.

    A choice is dominated by another of its stage that is no more expensive in the objective and every bounded metric and has a clearly smaller
    calibration error (the teacher's is 0). Unknown errors dominate nothing and are dominated by the teacher alone; without `trust_errors` so are all.
    """
    metrics = sorted({problem.objective, *(bound.metric for bound in problem.bounds)})
    known, kept = problem.known_errors, []
    for s, size in enumerate(problem.space.sizes):
        errors = np.full(size, np.nan)
        if trust_errors and known is not None:
            errors = known[s, :size].astype(np.float64)
        costs = np.stack([problem.costs.by_choice[metric][s, :size] for metric in metrics])
        dearer = (costs[:, :, None] >= costs[:, None, :]).all(axis=0)  # (k, j): k is no cheaper than j
        worse = errors[:, None] >= CLEARLY * errors[None, :]
        worse[:, 0] = True
        dominated = dearer & worse & ~np.eye(size, dtype=bool)
        dominated[0] = False
        kept.append(np.flatnonzero(~dominated.any(axis=1) | keep_dominated))
    return kept
