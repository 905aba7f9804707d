"""What a search knows: measurements, trials, and the best of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from nas.space import Candidate

State = Literal["complete", "failed"]


@dataclass(frozen=True, slots=True)
class Measurement:
    """The divergence of one candidate, a mean over `n_samples`, or the reason why there is none.

    `stderr` is the standard error of the mean, clustered by the unit of independence; `attrs["noise"]` the part of it in which candidates differ, where
    all are measured on the same samples: 0 once all samples were used. `complete` is False when racing stopped
    before all samples were used. `cached` measurements cost nothing.
    """

    divergence: float | None
    stderr: float = 0.0
    n_samples: int = 0
    seconds: float = 0.0
    reason: str = ""
    complete: bool = True
    cached: bool = False
    attrs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Trial:
    """One row of the record: a candidate, its exact costs and its measurement. `divergence` is None when it failed."""

    number: int
    candidate: Candidate
    costs: Mapping[str, float]
    divergence: float | None
    stderr: float = 0.0
    n_samples: int = 0
    seconds: float = 0.0
    state: State = "complete"
    reason: str = ""
    attrs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def noise(self) -> float:
        """The standard error that a comparison with other trials has to reckon with."""
        return float(self.attrs.get("noise", self.stderr))

    @property
    def partial(self) -> bool:
        """Whether racing stopped before all samples were used."""
        return bool(self.attrs.get("partial", False))


def incumbent(trials: Sequence[Trial], eps: float, metric: str = "params") -> Trial | None:
    """The cheapest feasible trial (ties: the earlier one), or None while there is none."""
    feasible = (t for t in trials if t.divergence is not None and t.divergence <= eps)
    return min(feasible, key=lambda t: t.costs[metric], default=None)


def least_divergent(trials: Sequence[Trial]) -> Trial | None:
    """The measured trial with the least divergence, or None when nothing was measured."""
    measured = (t for t in trials if t.divergence is not None)
    return min(measured, key=lambda t: t.divergence or 0.0, default=None)
