"""A run's winner made smaller by cascade calibration: the search goes on with larger eps, and what it finds is recalibrated until it is within eps."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from nas.amounts import amount
from nas.blocks.calibration import CalibratedBlock
from nas.blocks.cascade import Cascade
from nas.cascades import CASCADE
from nas.evaluators.cache import EvaluationCache
from nas.evaluators.divergence import DivergenceEvaluator
from nas.job import search
from nas.modelcard import NAME as CARD
from nas.modelcard import cascade_card
from nas.progress import Progress
from nas.space import Candidate, Choice, SearchSpace
from nas.spaces.network import NetworkSpace
from nas.study import HELDOUT_TOLERANCE, Stopped, Study
from nas.trial import Measurement

REACH = (1.25, 1.5, 1.75, 2.0, 2.5)
"""Multiples of eps that the search goes on with."""


@dataclass(frozen=True)
class Recalibrated:
    """A candidate before and after cascade calibration."""

    candidate: Candidate
    costs: Mapping[str, float]
    before: float | None
    after: float | None
    heldout: float | None
    stderr: float = 0.0
    n_samples: int = 0

    def within(self, eps: float) -> bool:
        """Whether it may be taken: as strict as the verdict on a search's winner."""
        return self.after is not None and self.after <= eps and self.heldout is not None and self.heldout <= HELDOUT_TOLERANCE * eps


@dataclass(frozen=True, slots=True)
class Spent:
    """What a cascade search took.

    Attributes:
        n_trials: candidates that the search with larger eps looked at, of which `n_measured` were in no cache.
        n_recalibrated: candidates whose blocks were fitted again.
        seconds: of all of it.
    """

    n_trials: int = 0
    n_measured: int = 0
    n_recalibrated: int = 0
    seconds: float = 0.0


class CascadeSearch:
    """Cascade calibration on the candidates of one network space; `stopped` says why the search that went on stopped."""

    def __init__(self, network: NetworkSpace, progress: Progress) -> None:
        self._network, self._progress = network, progress
        self._started, self._spent = time.monotonic(), Spent()
        self.stopped: Stopped = "trials"
        calibrator = network.calibrator()
        self._blocks = calibrator.run(network.stages, progress)
        self._cascade = Cascade(calibrator)
        self._cache = EvaluationCache(network.root / "evaluations.db")
        self._teacher: Mapping[str, float] = network.counted.of(network.space.teacher)

    @property
    def spent(self) -> Spent:
        """What it took so far."""
        return replace(self._spent, seconds=round(time.monotonic() - self._started, 3))

    def smaller(
        self,
        eps: float,
        reach: Sequence[float] = REACH,
        trials: int = 120,
        seed: int = 0,
        on_trial: Callable[[Study], None] | None = None,
        minimize: str | None = None,
        where: Sequence[str] = (),
    ) -> tuple[list[Recalibrated], Recalibrated | None]:
        """All candidates tried, from the cheapest on, the last of which is within eps after recalibration; None if none was.

        The eps of a search, times each number in `reach` and 1, gives the candidates: the winners of one search over all of them, by the cost to
        `minimize` and within the bounds `where`, both as in `nas.search`.
        """
        wanted = [eps * factor for factor in (1.0, *reach)]
        self._progress.note(f"searching at eps {eps:g} and up to {max(wanted):g}: candidates that recalibration may bring within {eps:g}")
        result = search(
            self._network, wanted, workdir=None, trials=trials, seed=seed, progress=self._progress, on_trial=on_trial, minimize=minimize, where=where
        )
        self._spent = replace(self._spent, n_trials=len(result.study.trials), n_measured=result.study.n_measured)
        problem, self.stopped = result.study.problem, result.stopped
        objective, self._teacher = problem.objective, problem.costs.of(problem.space.teacher)
        winners = {w.trial.candidate: w.trial for w in result.winners if w.trial is not None and w.feasible}
        tried = []
        for trial in sorted(winners.values(), key=lambda t: (t.costs[objective], t.number)):
            candidate = self._network.space.encode(problem.space.decode(trial.candidate))
            tried.append(replace(self.recalibrated(candidate, trial.divergence), costs=trial.costs))
            self._tell(tried[-1], eps, objective)
            if tried[-1].within(eps):
                return tried, tried[-1]
        return tried, None

    def recalibrated(self, candidate: Candidate, before: float | None = None) -> Recalibrated:
        """The candidate after cascade calibration, measured on both sets."""
        blocks = self.blocks(candidate)
        after, heldout = (self._measured(candidate, blocks, name) for name in ("measure", "verify"))
        self._spent = replace(self._spent, n_recalibrated=self._spent.n_recalibrated + 1)
        costs = self._network.counted.of(candidate)
        return Recalibrated(candidate, costs, before, after.divergence, heldout.divergence, after.stderr, after.n_samples)

    def _tell(self, row: Recalibrated, eps: float, objective: str) -> None:
        before, after = ("-" if value is None else f"{value:.3g}" for value in (row.before, row.after))
        verdict = "within" if row.within(eps) else "above"
        self._progress.note(f"recalibrated {amount(row.costs[objective])} {objective}: L {before} before, {after} after: {verdict} eps {eps:g}")

    def blocks(self, candidate: Candidate) -> dict[str, CalibratedBlock]:
        """Stage -> recalibrated block, for the stages that the candidate replaces."""
        names = SearchSpace(self._network.name, self._network.stages).decode(candidate)
        chosen = {stage: self._blocks[stage, choice] for (stage, choice), k in zip(names.items(), candidate, strict=True) if k}
        return self._cascade.run(chosen, self._progress)

    def export(
        self,
        found: Recalibrated,
        eps: float,
        tried: Sequence[Recalibrated],
        folder: Path,
        config: Mapping[str, Mapping[str, Any]] | None = None,
        trials: int | None = None,
    ) -> dict[str, Any]:
        """Writes the recalibrated candidate as a model, with `cascade.json`, whose content it returns, and a card beside it.

        `config` is that of the run it goes on from, for the card; `trials` as they were asked for.
        """
        blocks, stages = self.blocks(found.candidate), self._network.stages
        chosen: dict[str, tuple[Choice, nn.Module]] = {
            stage.name: (stage.choices[k], blocks[stage.name].module) for stage, k in zip(stages, found.candidate, strict=True) if k
        }
        network = self._network
        content = {
            "space": network.name, "teacher": self._teacher, **self._row(found), "eps": eps, "path": str(folder), "tried": [self._row(row) for row in tried],
            "trials": trials, "spent": asdict(self.spent),
        }  # fmt: skip
        network.write_model(chosen, folder, {CASCADE: json.dumps(content, indent=1) + "\n", CARD: cascade_card(content, config or {}, network.loading)})
        return content

    def _row(self, row: Recalibrated) -> dict[str, Any]:
        names = self._network.space.decode(row.candidate)
        measured = {"divergence": row.after, "stderr": row.stderr, "n_samples": row.n_samples, "heldout_divergence": row.heldout}
        return {"candidate": names, **row.costs, "divergence_before": row.before, **measured}

    def _measured(self, candidate: Candidate, blocks: Mapping[str, CalibratedBlock], samples: str) -> Measurement:
        network = self._network
        modules = [[network.graph[s.name].module, *([blocks[s.name].module] if s.name in blocks else [])] for s in network.stages]
        keys = [["teacher", *([blocks[s.name].key] if s.name in blocks else [])] for s in network.stages]
        evaluator = DivergenceEvaluator(
            network.graph, [s.name for s in network.stages], modules, keys, getattr(network.data, samples),
            identity=network.teacher_key, divergence=network.divergence, cache=self._cache, settings=network.evaluation,
        )  # fmt: skip
        return evaluator.measure([tuple(min(k, 1) for k in candidate)])[0]
