"""From a grid of eps to one model: the winner whose size is closest to a target, as [TOC-SR] chooses (3.2.3, Table S6)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nas.amounts import AMOUNT, scaled
from nas.bounds import ways_out
from nas.errors import InputError, NothingFeasible, did_you_mean


@dataclass(frozen=True, slots=True)
class Target:
    """A size to come close to."""

    metric: str
    value: float

    @classmethod
    def parse(cls, text: str, teacher: Mapping[str, float]) -> "Target":
        """The target that `"params=130M"` or `"macs=40%"` states; percentages are of the teacher.

        >>> Target.parse("params=130M", {"params": 859.6e6})
        Target(metric='params', value=130000000.0)

        Raises:
            InputError: another form, or an unknown metric.
        """
        match = re.fullmatch(rf"\s*(\w+)\s*=\s*{AMOUNT}\s*", text)
        if match is None:
            raise InputError(f"target '{text}' must read METRIC=NUMBER[k|M|G|T|%], such as 'params=130M' or 'macs=40%'")
        metric, number, unit = match.groups()
        if metric not in teacher:
            raise InputError(f"target '{text}': unknown metric '{metric}'{did_you_mean(metric, teacher)}")
        try:
            value = scaled(number, unit, teacher[metric])
        except ValueError:
            raise InputError(f"target '{text}': '{number}' is not a number") from None
        if not value > 0:
            raise InputError(f"target '{text}' must be above 0")
        return cls(metric, value)


def best(summary: Mapping[str, Any], target: Target | None, *, bounded: bool = False) -> dict[str, Any]:
    """The winner of a run (see `nas show --json`) closest to the target, the cheaper one of two as close; without a target the cheapest.

    What `nas cascade` made of a winner counts as one. `bounded` says whether the search had bounds on known costs, which may be relaxed.

    Returns:
        The winner's keys, and `target` and `difference` (winner less target, None without one).

    Raises:
        NothingFeasible: the run has no feasible winner.
    """
    feasible = [winner for winner in (*summary["winners"], *summary.get("cascades", ())) if winner["feasible"]]
    if not feasible and summary.get("stopped") in ("proof", "exhausted") and not summary["n_trials"]:
        raise NothingFeasible("the run has no winner: its search found nothing to measure; relax --where, or keep the teacher")
    if not feasible:
        eps = [winner["eps"] for winner in summary["winners"]]
        raise NothingFeasible(f"the run has no feasible winner; {ways_out(eps, bounded, summary.get('stopped', 'trials'))}")
    metric = target.metric if target else summary["objective"]
    chosen = min(feasible, key=lambda winner: (abs(winner[metric] - target.value) if target else 0.0, winner[metric], winner["eps"]))
    stated = {"metric": target.metric, "value": target.value} if target else None
    return {**chosen, "target": stated, "difference": chosen[metric] - target.value if target else None}
