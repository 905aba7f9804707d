"""The problem an optimizer solves: a known additive cost to minimise, bounds, and a measured divergence.

Symbols: `S` stages, `K` the largest number of choices, `n` candidates.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nas.amounts import AMOUNT, at_least, scaled
from nas.arguments import instance, number, several, shown
from nas.arguments import text as a_text
from nas.errors import InputError, did_you_mean
from nas.space import SearchSpace

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class CostTable:
    """Exact additive costs: metric -> `(S, K)` numbers (NaN where a stage has fewer choices), and the fixed part of each metric.

    `notes` say what was not counted.
    """

    by_choice: Mapping[str, Floats]
    fixed: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def metrics(self) -> list[str]:
        """Names of the costs."""
        return list(self.by_choice)

    def check_metric(self, metric: str) -> str:
        """The metric itself, or an error with the nearest known one."""
        if a_text("metric", metric, next(iter(self.by_choice), "params")) not in self.by_choice:
            raise InputError(f"unknown metric '{metric}'{did_you_mean(metric, self.by_choice)}")
        return metric

    def totals(self, candidates: ArrayLike, metric: str = "params") -> Floats:
        """Cost of each candidate, `(n, S) -> (n,)`; sums of table entries plus the fixed part (Eq. 10 of [TOC-SR])."""
        table = self.by_choice[self.check_metric(metric)]
        rows = np.asarray(candidates)
        total = np.full(rows.shape[0], float(self.fixed.get(metric, 0.0)))
        for s in range(table.shape[0]):
            total += table[s][rows[:, s]]
        return total

    def of(self, candidate: tuple[int, ...]) -> dict[str, float]:
        """Every metric of one candidate."""
        return {
            metric: float(self.fixed.get(metric, 0.0)) + sum(float(table[s, k]) for s, k in enumerate(candidate)) for metric, table in self.by_choice.items()
        }

    def reach(self, metric: str) -> tuple[float, float]:
        """Least and largest total of a metric over all combinations."""
        table = self.by_choice[self.check_metric(metric)]
        fixed = float(self.fixed.get(metric, 0.0))
        return fixed + float(np.nanmin(table, axis=1).sum()), fixed + float(np.nanmax(table, axis=1).sum())


@dataclass(frozen=True, slots=True)
class Bound:
    """`metric <= limit`, in the metric's own unit."""

    metric: str
    limit: float

    @classmethod
    def parse(cls, text: str, costs: CostTable) -> "Bound":
        """The bound that `"macs<=75%"`, `"params<=130M"` or `"latency_ms<=20"` states; percentages are of the teacher.

        Raises:
            InputError: another form, an unknown metric, or a limit below what the cheapest candidate reaches.
        """
        bound = cls.stated(text, costs)
        teacher = costs.of((0,) * next(iter(costs.by_choice.values())).shape[0])[bound.metric]
        least = costs.reach(bound.metric)[0]
        if bound.limit < least * (1 - 1e-12):
            raise InputError(f"bound '{text}' cannot hold: the least {bound.metric} of any candidate is {at_least(least, teacher)}; give at least that")
        return bound

    @classmethod
    def stated(cls, text: str, costs: CostTable) -> "Bound":
        """The same, whether or not any candidate can hold it.

        Raises:
            InputError: another form, or an unknown metric.
        """
        instance("costs", costs, CostTable, "a space's costs() are one")
        if not isinstance(text, str):
            raise InputError(f"a bound must be a text such as 'macs<=75%', got {shown(text)}")
        match = re.fullmatch(rf"\s*(\w+)\s*<=\s*{AMOUNT}\s*", text)
        if match is None:
            raise InputError(f"bound '{text}' must read METRIC<=NUMBER[k|M|G|T|%], such as 'macs<=75%' or 'params<=130M'")
        metric, number, unit = match.groups()
        costs.check_metric(metric)
        teacher = costs.of((0,) * next(iter(costs.by_choice.values())).shape[0])[metric]
        try:
            limit = scaled(number, unit, teacher)
        except ValueError:
            raise InputError(f"bound '{text}': '{number}' is not a number") from None
        return cls(metric, limit)


@dataclass(frozen=True)
class Problem:
    """Minimise `objective` subject to divergence <= eps (each eps its own winner) and to bounds on known metrics.

    `calibration_errors` `(S, K)`: the error of each calibrated block, 0 for the teacher, NaN where unknown; None when nothing is known.
    `expected_losses` `(S, K)`: the divergence that each block is expected to cost alone, in the same form.
    """

    space: SearchSpace
    costs: CostTable
    eps: tuple[float, ...]
    objective: str = "params"
    bounds: tuple[Bound, ...] = ()
    calibration_errors: Floats | None = None
    expected_losses: Floats | None = None

    def __post_init__(self) -> None:
        instance("costs", self.costs, CostTable, "a space's costs() are one")
        instance("space", self.space, SearchSpace, "SearchSpace.of_sizes('demo', [2, 3]) makes one")
        self.costs.check_metric(self.objective)
        if not self.eps:
            raise InputError("a problem needs at least one eps")
        for eps in several("eps", self.eps, "(0.005,)"):
            number("eps", eps, 0)

    @property
    def known_errors(self) -> Floats | None:
        """What orders the choices of a stage by their losses, `(S, K)`: expected losses, else calibration errors; None without either."""
        return self.calibration_errors if self.expected_losses is None else self.expected_losses

    def cost(self, candidates: ArrayLike) -> Floats:
        """The objective of each candidate, `(n, S) -> (n,)`."""
        return self.costs.totals(candidates, self.objective)

    def allowed(self, candidates: ArrayLike) -> NDArray[np.bool_]:
        """Which candidates satisfy all known bounds and rules, `(n, S) -> (n,)`."""
        rows = np.asarray(candidates)
        keep = np.ones(rows.shape[0], dtype=bool)
        for bound in self.bounds:
            keep &= self.costs.totals(rows, bound.metric) <= bound.limit * (1 + 1e-12)
        for rule in self.space.rules:
            keep &= np.fromiter((rule(tuple(int(k) for k in row)) for row in rows), dtype=bool, count=rows.shape[0])
        return keep

    def broken(self, candidate: tuple[int, ...]) -> str:
        """What a candidate breaks, in words: the first bound, else the first rule; empty when it is allowed."""
        for bound in self.bounds:
            total = float(self.costs.totals([candidate], bound.metric)[0])
            if total > bound.limit * (1 + 1e-12):
                return f"its {bound.metric} is {total:.8g}, the bound is {bound.metric}<={bound.limit:.8g}"
        for at, rule in enumerate(self.space.rules, 1):
            if not rule(candidate):
                return f"it breaks rule {at} of the space, {getattr(rule, '__name__', type(rule).__name__)}"
        return ""
