"""What to build next: what a better block at each stage of a winner would be worth."""

import math
from dataclasses import dataclass

from nas.problem import Problem
from nas.report.forecast import Estimate, Forecast
from nas.trial import Trial

UNKNOWN = 0.9
"""A predicted part of L whose 90 % interval is wider than this share of L says nothing."""


@dataclass(frozen=True, slots=True)
class NewBlock:
    """What a better block at a stage would be worth: one of half the cost and the same L, or one of the same cost and half the stage's part of L.

    The part is None where the stage has the teacher's block, and where it is unknown; a predicted one has a 90 % interval, a measured one a standard error.
    """

    stage: str
    choice: str
    cost: float
    half_cost_saves: float
    part_of_divergence: float | None
    half_error_saves: float | None
    part_measured: bool = False
    part_low: float | None = None
    part_high: float | None = None

    @property
    def part(self) -> Estimate | None:
        """The part as other divergences are shown."""
        if self.part_of_divergence is None or self.part_low is None or self.part_high is None:
            return None
        return Estimate(self.part_of_divergence, self.part_low, self.part_high, "measured" if self.part_measured else "predicted")

    @property
    def unknown(self) -> bool:
        """Whether the stage is replaced and nobody knows what that adds to L."""
        return self.choice != "teacher" and self.part_of_divergence is None


def new_blocks(problem: Problem, trial: Trial, forecast: Forecast, worth: float | None) -> list[NewBlock]:
    """Stages of a winner by what a better block there would save, most first.

    The stage's part of L is what falls when it gets the teacher's block back; L is `worth` what the objective gains per unit of eps around the winner,
    None where that is unknown.
    """
    table, a = problem.costs.by_choice[problem.objective], trial.candidate
    without = forecast.of([(*a[:s], 0, *a[s + 1 :]) for s in range(len(a))])
    whole = forecast.predicted(a)
    rows = []
    for s, (stage, estimate) in enumerate(zip(problem.space.stages, without, strict=True)):
        elsewhere = any(t.candidate[s] == a[s] and t.candidate != a for t in forecast.trials)
        part = None if a[s] == 0 else _part(trial, estimate, whole if elsewhere else None)
        value, low, high = (part.value, part.low, part.high) if part else (None, None, None)
        cost = float(table[s, a[s]])
        gained = None if value is None or worth is None else value / 2 * max(worth, 0.0)
        measured = part is not None and part.source == "measured"
        rows.append(NewBlock(stage.name, stage.choices[a[s]].name, cost, cost / 2, value, gained, measured, low, high))
    return sorted(rows, key=lambda row: -max(row.half_cost_saves, row.half_error_saves or 0.0))


def _part(trial: Trial, without: Estimate | None, predicted: float | None) -> Estimate | None:
    """What falls off L when a swap is taken back; a prediction is compared with the one for the winner itself (None: not to be trusted).

    None where neither a measurement nor the model says: also where the interval is as wide as L, or the model holds that nothing could fall.
    """
    divergence = trial.divergence or 0.0
    if without is None:
        return None
    if without.source == "measured":
        value, spread = max(divergence - without.value, 0.0), math.hypot(trial.stderr, without.high - without.value)
        return Estimate(value, value - spread, value + spread, "measured")
    if not predicted:
        return None
    low, value, high = (divergence * max(1 - quantile / predicted, 0.0) for quantile in (without.high, without.value, without.low))
    return None if high <= 0 or high - low >= UNKNOWN * divergence else Estimate(value, low, high, "predicted")
