"""A network as a search space: a staged teacher, recipes for its stages, and data; made measurable by calibration and counting."""

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from torch import Tensor, nn

from nas.blocks.calibration import CalibratedBlock, CalibrationSettings, Calibrator, calibration_errors
from nas.blocks.contract import check_recipes
from nas.blocks.store import BlockStore, block_key
from nas.data import Samples, Splits, hash_tensors
from nas.errors import InputError
from nas.evaluators.cache import EvaluationCache
from nas.evaluators.costs import count_costs
from nas.evaluators.divergence import Divergence, DivergenceEvaluator, Settings, mean_squared_error
from nas.graph import StageGraph
from nas.home import nas_home
from nas.problem import CostTable
from nas.progress import Progress
from nas.protocols import Task
from nas.space import Candidate, Choice, SearchSpace, Stage

Loss = Callable[[Tensor, Samples], float]
"""The task's own loss of an output `(n, ...)` on the samples it was computed for."""

Save = Callable[[Mapping[str, tuple[Choice, nn.Module]], Path], None]
"""Writes the model with the given blocks at the given stages into a folder."""


@dataclass(frozen=True)
class NetworkSpace:
    """A teacher cut into stages, with choices for them and the three sample sets.

    Args:
        name: what the space is called.
        graph: the teacher, in evaluation mode, on the device to run on.
        stages: stages and their choices; a stage's name is a step of the graph.
        data: fit, measure and verify samples.
        divergence: distance between two outputs, per sample.
        loss: the task's own loss, reported beside the divergence; optional.
        save: writes an assembled candidate as a model; optional.
        calibration: how blocks are fitted.
        evaluation: how candidates are measured.
        notes: lines that every search on it prints.
        legend: how to read the names of its blocks.
        home: where blocks and measured values are kept; None is `$NAS_HOME`.
    """

    name: str
    graph: StageGraph
    stages: tuple[Stage, ...]
    data: Splits
    divergence: Divergence = mean_squared_error
    loss: Loss | None = None
    save: Save | None = None
    calibration: CalibrationSettings = field(default_factory=CalibrationSettings)
    evaluation: Settings = field(default_factory=Settings)
    home: Path | None = None
    notes: tuple[str, ...] = ()
    legend: str = ""

    def __post_init__(self) -> None:
        self.graph.check_stages([stage.name for stage in self.stages])

    @cached_property
    def space(self) -> SearchSpace:
        """Stages and choices, before calibration may leave some out."""
        return SearchSpace(self.name, self.stages)

    @cached_property
    def teacher_key(self) -> str:
        """Hash of every parameter and buffer of the teacher, and of how its modules are built."""
        modules = nn.ModuleDict({step.name: step.module for step in self.graph.steps})
        tensors = {**dict(modules.named_parameters()), **dict(modules.named_buffers())}
        return block_key(tensors=hash_tensors(tensors), structure=repr(modules))[:16]

    def fingerprint(self) -> dict[str, str]:
        """Short hashes of teacher, library (with how it is calibrated) and data."""
        recipes = [[stage.name, [[c.name, c.recipe.spec if c.recipe else {}] for c in stage.choices]] for stage in self.stages]
        return {
            "teacher": self.teacher_key,
            "library": block_key(recipes=recipes, settings=repr(self.calibration))[:16],
            "data": block_key(**{name: samples.fingerprint for name, samples in self._sets().items()})[:16],
        }

    def calibrator(self) -> Calibrator:
        """What fits this space's surrogate blocks."""
        return Calibrator(self.graph, self.teacher_key, self.data.fit, BlockStore(self.root / "blocks"), self.calibration)

    def costs(self) -> CostTable:
        """Exact costs of every choice, counted without calibrating anything."""
        built = {
            (stage.name, choice.name): choice.recipe.build(self.graph[stage.name].module)
            for stage in self.stages
            for choice in stage.choices
            if choice.recipe is not None
        }
        return count_costs(self.graph, self.stages, built, self.example)

    def prepare(self, progress: Progress) -> Task:
        """Checks and calibrates the blocks, counts costs, opens the evaluators."""
        calibrator = self.calibrator()
        check_recipes(self.graph, calibrator.missing(self.stages), self.example)
        assembly = Assembly(self, calibrator.run(self.stages, progress))
        evaluator = assembly.evaluator(self.data.measure)
        costs = count_costs(self.graph, assembly.stages, assembly.modules, self.example)
        return Task(
            SearchSpace(self.name, assembly.stages),
            costs,
            evaluator,
            calibration_errors(assembly.stages, assembly.blocks),
            scale=evaluator.teacher_variance,
            verifier=assembly.verifier,
            heldout_loss=assembly.heldout_loss if self.loss else None,
            export=assembly.export if self.save else None,
            notes=self.notes,
            flow=self.graph.dag,
            legend=self.legend,
        )

    @property
    def example(self) -> dict[str, Tensor]:
        """One sample's inputs: what costs are counted on."""
        return {name: value[:1] for name, value in self.data.fit.inputs.items()}

    @property
    def root(self) -> Path:
        """Where blocks and measured values are kept."""
        return self.home or nas_home()

    def _sets(self) -> dict[str, Samples]:
        return {"fit": self.data.fit, "measure": self.data.measure, "verify": self.data.verify}


class Assembly:
    """Calibrated blocks of a space, ready to be put together; choices whose calibration failed are gone."""

    def __init__(self, network: NetworkSpace, blocks: dict[tuple[str, str], CalibratedBlock]) -> None:
        self._network = network
        self.blocks = blocks
        self.stages = tuple(
            replace(stage, choices=tuple(c for c in stage.choices if c.recipe is None or (stage.name, c.name) in blocks)) for stage in network.stages
        )
        self.modules = {key: block.module for key, block in blocks.items()}
        self._cache = EvaluationCache(network.root / "evaluations.db")
        self.verifier = self.evaluator(network.data.verify)

    def evaluator(self, samples: Samples) -> DivergenceEvaluator:
        """What measures candidates on these samples."""
        network = self._network
        modules = [[self._module(stage, choice) for choice in stage.choices] for stage in self.stages]
        keys = [["teacher" if c.recipe is None else self.blocks[stage.name, c.name].key for c in stage.choices] for stage in self.stages]
        return DivergenceEvaluator(
            network.graph, [stage.name for stage in self.stages], modules, keys, samples,
            identity=network.teacher_key, divergence=network.divergence, cache=self._cache, settings=network.evaluation,
        )  # fmt: skip

    def heldout_loss(self, candidate: Candidate) -> float:
        """The task's own loss of a candidate on the verify set, the same noise for all."""
        if self._network.loss is None:
            raise InputError(f"space '{self._network.name}' states no task loss")
        return self._network.loss(self.verifier.outputs(candidate), self._network.data.verify)

    def export(self, candidate: Candidate, folder: Path) -> None:
        """Writes the candidate as a model into a folder, which appears only when it is whole."""
        if self._network.save is None:
            raise InputError(f"space '{self._network.name}' has no way to save a model")
        chosen = {
            stage.name: (stage.choices[k], self._module(stage, stage.choices[k])) for stage, k in zip(self.stages, candidate, strict=True) if k
        }
        draft = folder.with_name(f".{folder.name}.{os.getpid()}")
        try:
            self._network.save(chosen, draft)
            if folder.exists():
                shutil.rmtree(folder)
            draft.rename(folder)
        except OSError as error:
            raise InputError(f"cannot write the model to {folder}: {error.strerror}; nothing else is lost") from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def _module(self, stage: Stage, choice: Choice) -> nn.Module:
        return self._network.graph[stage.name].module if choice.recipe is None else self.modules[stage.name, choice.name]
