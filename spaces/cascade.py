"""A run's winner made smaller by cascade calibration: the search goes on with larger eps, and what it finds is recalibrated until it is within eps."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from nas.blocks.calibration import CalibratedBlock
from nas.blocks.cascade import Cascade
from nas.evaluators.cache import EvaluationCache
from nas.evaluators.divergence import DivergenceEvaluator
from nas.job import search
from nas.progress import Progress
from nas.space import Candidate, Choice, SearchSpace
from nas.spaces.network import NetworkSpace
from nas.study import HELDOUT_TOLERANCE

REACH = (1.25, 1.5, 1.75, 2.0, 2.5)
"""Multiples of eps that the search goes on with."""

RESULT = "cascade.json"


@dataclass(frozen=True)
class Recalibrated:
    """A candidate before and after cascade calibration."""

    candidate: Candidate
    costs: Mapping[str, float]
    before: float | None
    after: float | None
    heldout: float | None

    def within(self, eps: float) -> bool:
        """Whether it may be taken: as strict as the verdict on a search's winner."""
        return self.after is not None and self.after <= eps and self.heldout is not None and self.heldout <= HELDOUT_TOLERANCE * eps


class CascadeSearch:
    """Cascade calibration on the candidates of one network space."""

    def __init__(self, network: NetworkSpace, progress: Progress) -> None:
        self._network, self._progress = network, progress
        calibrator = network.calibrator()
        self._blocks = calibrator.run(network.stages, progress)
        self._cascade = Cascade(calibrator)
        self._cache = EvaluationCache(network.root / "evaluations.db")

    def smaller(self, eps: float, reach: Sequence[float] = REACH, trials: int = 120, seed: int = 0) -> tuple[list[Recalibrated], Recalibrated | None]:
        """All candidates tried, from the cheapest on, the last of which is within eps after recalibration; None if none was.

        The eps of a search, times each number in `reach` and 1, gives the candidates: the winners of one search over all of them.
        """
        result = search(self._network, [eps * factor for factor in (1.0, *reach)], workdir=None, trials=trials, seed=seed, progress=self._progress)
        objective = result.study.problem.objective
        winners = {w.trial.candidate: w.trial for w in result.winners if w.trial is not None and w.feasible}
        tried = []
        for trial in sorted(winners.values(), key=lambda t: (t.costs[objective], t.number)):
            names = result.study.problem.space.decode(trial.candidate)
            tried.append(self.recalibrated(self._network.space.encode(names), trial.divergence))
            if tried[-1].within(eps):
                return tried, tried[-1]
        return tried, None

    def recalibrated(self, candidate: Candidate, before: float | None = None) -> Recalibrated:
        """The candidate after cascade calibration, measured on both sets."""
        blocks = self.blocks(candidate)
        after, heldout = (self._divergence(candidate, blocks, name) for name in ("measure", "verify"))
        return Recalibrated(candidate, self._network.counted.of(candidate), before, after, heldout)

    def blocks(self, candidate: Candidate) -> dict[str, CalibratedBlock]:
        """Stage -> recalibrated block, for the stages that the candidate replaces."""
        names = SearchSpace(self._network.name, self._network.stages).decode(candidate)
        chosen = {stage: self._blocks[stage, choice] for (stage, choice), k in zip(names.items(), candidate, strict=True) if k}
        return self._cascade.run(chosen, self._progress)

    def export(self, found: Recalibrated, eps: float, tried: Sequence[Recalibrated], folder: Path) -> dict[str, Any]:
        """Writes the recalibrated candidate as a model, with `cascade.json` beside it, whose content it returns."""
        blocks, stages = self.blocks(found.candidate), self._network.stages
        chosen: dict[str, tuple[Choice, nn.Module]] = {
            stage.name: (stage.choices[k], blocks[stage.name].module) for stage, k in zip(stages, found.candidate, strict=True) if k
        }
        content = {**self._row(found), "eps": eps, "path": str(folder), "tried": [self._row(row) for row in tried]}
        self._network.write_model(chosen, folder, {RESULT: json.dumps(content, indent=1) + "\n"})
        return content

    def _row(self, row: Recalibrated) -> dict[str, Any]:
        names = self._network.space.decode(row.candidate)
        return {"candidate": names, **row.costs, "divergence_before": row.before, "divergence": row.after, "heldout_divergence": row.heldout}

    def _divergence(self, candidate: Candidate, blocks: Mapping[str, CalibratedBlock], samples: str) -> float | None:
        network = self._network
        modules = [[network.graph[s.name].module, *([blocks[s.name].module] if s.name in blocks else [])] for s in network.stages]
        keys = [["teacher", *([blocks[s.name].key] if s.name in blocks else [])] for s in network.stages]
        evaluator = DivergenceEvaluator(
            network.graph, [s.name for s in network.stages], modules, keys, getattr(network.data, samples),
            identity=network.teacher_key, divergence=network.divergence, cache=self._cache, settings=network.evaluation,
        )  # fmt: skip
        return evaluator.measure([tuple(min(k, 1) for k in candidate)])[0].divergence
