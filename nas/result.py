"""What a search found, as objects, JSON, tables and a notebook's view."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nas.findings import Findings, facts_of
from nas.frames import trials_frame
from nas.problem import Problem
from nas.report.notebook import snippet
from nas.report.tables import headline
from nas.study import Stopped, Study, Winner


@dataclass(frozen=True)
class SearchResult:
    """What a search found: a winner for each eps, in the order given, and the study behind them."""

    space: str
    study: Study
    winners: tuple[Winner, ...]
    stopped: Stopped
    run: Path | None
    seconds: dict[str, float]
    paths: dict[float, str] = field(default_factory=dict)
    statements: tuple[str, ...] = ()
    scale: float | None = None

    @property
    def table(self) -> dict[str, Any]:
        """Every stage's choices with their costs and calibration errors, and how to read their names."""
        table: dict[str, Any] = self.study.record.fact("table")
        return table

    @property
    def findings(self) -> Findings:
        """The same as reports and explanations read it."""
        config = {"space": {"name": self.space}, "search": {"eps": [winner.eps for winner in self.winners]}}
        facts = {**facts_of(self.study.record), "result": self.to_json()}
        return Findings(self.run or Path(), config, tuple(self.study.trials), self.study.problem, facts)

    def trials_frame(self) -> Any:
        """The trials as a pandas table."""
        return trials_frame(self.study.problem.space, self.study.trials)

    def __str__(self) -> str:
        winners = (headline(self.findings, winner) for winner in self.findings.winners)
        return "\n".join(f"{self.space}, eps {head.eps:g}: {head.title}, L {head.divergence or '-'}" for head in winners)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return snippet(self.findings)

    def to_json(self) -> dict[str, Any]:
        """The JSON of `nas search`."""
        problem = self.study.problem
        return {
            "space": self.space,
            "objective": problem.objective,
            "teacher": {name: _number(value) for name, value in problem.costs.of(problem.space.teacher).items()},
            "winners": [self._winner(winner) for winner in self.winners],
            "n_trials": len(self.study.trials),
            "n_measured": self.study.n_measured,
            "seconds": self.seconds,
            "stopped": self.stopped,
            "statements": list(self.statements),
            "run": str(self.run) if self.run else None,
        }

    def _winner(self, winner: Winner) -> dict[str, Any]:
        trial = winner.trial
        return {
            "eps": winner.eps,
            "feasible": winner.feasible,
            "candidate": self.study.problem.space.decode(trial.candidate) if trial else None,
            **({name: _number(value) for name, value in trial.costs.items()} if trial else {}),
            "divergence": trial.divergence if trial else None,
            "stderr": trial.stderr if trial else None,
            "n_samples": trial.n_samples if trial else 0,
            "relative_divergence": trial.divergence / self.scale if trial and trial.divergence is not None and self.scale else None,
            "heldout_divergence": winner.heldout.divergence if winner.heldout and winner.feasible else None,
            "path": self.paths.get(winner.eps),
            "rejected": [
                {"candidate": self.study.problem.space.decode(t.candidate), "divergence": t.divergence, "heldout_divergence": heldout.divergence}
                for t, heldout in winner.rejected
            ],
        }


def stage_table(problem: Problem) -> dict[str, Any]:
    """Every stage's choices with their costs, calibration errors and, if known, expected losses; and the fixed part.

    It is what a reader needs to understand a winner.
    """

    def choice(s: int, k: int, name: str) -> dict[str, Any]:
        row: dict[str, Any] = {"name": name, **{metric: _number(table[s, k]) for metric, table in problem.costs.by_choice.items()}}
        expected = {} if problem.expected_losses is None else {"expected_loss": _known(problem.expected_losses[s, k])}
        return {**row, "calibration_error": None if problem.calibration_errors is None else _known(problem.calibration_errors[s, k]), **expected}

    stages = [{"name": stage.name, "choices": [choice(s, k, c.name) for k, c in enumerate(stage.choices)]} for s, stage in enumerate(problem.space.stages)]
    return {"stages": stages, "fixed": {metric: _number(problem.costs.fixed.get(metric, 0.0)) for metric in problem.costs.metrics}}


def _known(value: float) -> float | None:
    """None for NaN."""
    return None if math.isnan(value) else float(value)


def _number(value: float) -> float | int:
    """Integers as such: costs are exact counts."""
    return int(value) if float(value).is_integer() else value
