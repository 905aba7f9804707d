"""What a model fitted to a run's trials says about candidates that were not measured."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from nas.errors import NasError
from nas.findings import Findings
from nas.names import resolve_optimizer
from nas.problem import Bound, Problem
from nas.protocols import Predicts
from nas.space import Candidate
from nas.trial import Trial

MODEL = "eps_gp"
"""Whose model is asked, whatever optimizer made the trials."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A divergence: measured (`low` and `high` are one standard error away) or predicted (5 % and 95 % quantiles)."""

    value: float
    low: float
    high: float
    source: Literal["measured", "predicted"]

    def __str__(self) -> str:
        if self.source == "measured":
            return f"{self.value:.3g} ± {self.high - self.value:.1g}" if self.high > self.value else f"{self.value:.3g}"
        return f"~{self.value:.2g} ({self.low:.2g} to {self.high:.2g})"


@dataclass(frozen=True)
class Forecast:
    """Estimates of any candidate's divergence, measured where it was; `_known` remembers what was asked."""

    problem: Problem
    trials: tuple[Trial, ...]
    model: Predicts | None
    _known: dict[Candidate, Estimate] = field(default_factory=dict)

    def of(self, candidates: Sequence[Candidate]) -> list[Estimate | None]:
        """One estimate a candidate, in order; None where nothing is known."""
        new = [c for c in dict.fromkeys(candidates) if c not in self._known]
        if new and self.model is not None:
            for candidate, (low, value, high) in zip(new, self.model.predict(self.trials, new), strict=True):
                self._known[candidate] = Estimate(float(value), float(low), float(high), "predicted")
        return [self._known.get(candidate) for candidate in candidates]

    def predicted(self, candidate: Candidate) -> float | None:
        """The model's median for a candidate, measured or not: what other predictions are to be compared with."""
        return None if self.model is None else float(self.model.predict(self.trials, [candidate])[0][1])

    def corrected(self, heldout: Mapping[Candidate, float | None]) -> "Forecast":
        """A forecast for which candidates that held-out samples refused have the divergence measured there (None: it could not be measured)."""
        trials = tuple(replace(t, divergence=heldout[t.candidate]) if t.candidate in heldout else t for t in self.trials)
        return replace(self, trials=trials, _known={}) if heldout else self

    def under(self, bounds: tuple[Bound, ...]) -> "Forecast":
        """The forecast of the same trials under other bounds on known costs."""
        problem = replace(self.problem, bounds=bounds)
        return replace(self, problem=problem, model=_model(problem, self.trials))

    def cost_at(self, eps: float) -> "tuple[float, float, float] | None":
        """5 %, 50 % and 95 % quantiles of the cost of the cheapest feasible candidate at another eps; infinite where none is expected."""
        if self.model is None:
            return None
        draws = self.model.cost_at(self.trials, eps)
        low, middle, high = np.quantile(draws, (0.05, 0.5, 0.95), method="linear" if np.isfinite(draws).all() else "inverted_cdf")
        return float(low), float(middle), float(high)


def forecast(findings: Findings) -> Forecast | None:
    """The forecast of a run; it knows measurements only where no model can be fitted, None without a problem."""
    problem = findings.problem
    if problem is None:
        return None
    measured = tuple(t for t in findings.trials if t.divergence is not None and math.isfinite(t.divergence))
    known = {t.candidate: _measured(t) for t in measured} | {problem.space.teacher: Estimate(0.0, 0.0, 0.0, "measured")}
    return Forecast(problem, measured, _model(problem, measured), known)


def _model(problem: Problem, measured: Sequence[Trial]) -> Predicts | None:
    if len(measured) < 2 or not any(eps > 0 for eps in problem.eps):
        return None
    try:
        model = resolve_optimizer(MODEL, problem, 0)
        if not isinstance(model, Predicts):
            return None
        model.predict(measured, [measured[0].candidate])
    except (NasError, ArithmeticError, np.linalg.LinAlgError):
        return None
    return model


def _measured(trial: Trial) -> Estimate:
    assert trial.divergence is not None
    return Estimate(trial.divergence, trial.divergence - trial.stderr, trial.divergence + trial.stderr, "measured")


def single_swaps(problem: Problem) -> Mapping[tuple[int, int], Candidate]:
    """Stage and choice -> the teacher with that choice alone."""
    teacher = problem.space.teacher
    return {(s, k): (*teacher[:s], k, *teacher[s + 1 :]) for s, size in enumerate(problem.space.sizes) for k in range(1, size)}


def references(problem: Problem) -> dict[str, Candidate]:
    """Designs one would think of without a search: the same block at every stage, and the cheapest one at every stage."""
    stages = [stage for stage in problem.space.stages if len(stage.choices) > 1]
    common = [c.name for c in stages[0].choices[1:] if all(c.name in {d.name for d in stage.choices} for stage in stages)] if stages else []
    out = {f"all {name}": tuple(stage.index(name) if len(stage.choices) > 1 else 0 for stage in problem.space.stages) for name in common}
    cheapest = tuple(int(k) for k in np.nanargmin(problem.costs.by_choice[problem.objective], axis=1))
    out["cheapest everywhere"] = cheapest
    rows = np.array(list(out.values()))
    return {name: candidate for (name, candidate), allowed in zip(out.items(), problem.allowed(rows), strict=True) if allowed and any(candidate)}
