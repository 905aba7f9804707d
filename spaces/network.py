"""A network as a search space: a staged teacher, recipes for its stages, and data; made measurable by calibration and counting."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from nas.amounts import METRICS, SQUARED
from nas.arguments import function
from nas.blocks.building import build_block
from nas.blocks.calibration import CalibratedBlock, CalibrationSettings, Calibrator, calibration_errors
from nas.blocks.contract import check_recipes, check_spec
from nas.blocks.features import FeatureBank, FeatureBudget
from nas.blocks.saved import save_model
from nas.blocks.store import BlockStore, block_key
from nas.data import Samples, Splits, hash_tensors
from nas.errors import InputError, did_you_mean
from nas.evaluators.cache import EXPECTED, EvaluationCache
from nas.evaluators.costs import Measure, count_costs
from nas.evaluators.divergence import Divergence, DivergenceEvaluator, Settings, mean_squared_error
from nas.evaluators.divergence_call import check_at_teacher, described, divergence_arguments
from nas.evaluators.gauss_newton import NoExpansion, expected_losses
from nas.evaluators.latency import Setting, check_latency, measure_latency, read_latency, write_latency
from nas.evaluators.memory import weight_mb
from nas.files import whole_folder
from nas.fingerprint import code_identity
from nas.graph import StageGraph
from nas.home import nas_home
from nas.problem import CostTable, Floats
from nas.progress import Progress, Quiet
from nas.protocols import Forecast, Task
from nas.space import Candidate, Choice, SearchSpace, Stage
from nas.spaces.forecast import forecast
from nas.spaces.rules import NamedRule, check_forbidden, index_rules
from nas.user_code import user_code

Loss = Callable[[Tensor, Samples], float]
"""The task's own loss of an output `(n, ...)` on the samples it was computed for."""

Save = Callable[[Mapping[str, tuple[Choice, nn.Module]], Path], None]
"""Writes the model with the given blocks at the given stages into a folder."""


LOOKED_AT = 128
"""Samples of the measure set from which the losses of blocks are foreseen, at most."""
_EXPECTED_VERSION = 2  # of the numbers

LOAD_GRAPH = """from nas.blocks.saved import load_graph

graph = load_graph("FOLDER", make_graph())  # a fresh graph like the teacher's; first import the file with your recipes"""


@dataclass(frozen=True, repr=False)
class NetworkSpace:
    """A teacher cut into stages, with choices for them and the three sample sets.

    Args:
        name: what the space is called.
        graph: the teacher, in evaluation mode, on the device to run on.
        stages: stages and their choices; a stage's name is a step of the graph.
        data: fit, measure and verify samples.
        divergence: distance between two outputs, per sample.
        loss: the task's own loss, reported beside the divergence; optional.
        save: writes an assembled candidate as a model; by default `nas.blocks.saved` does, in a form that it reads back.
        calibration: how blocks are fitted.
        feature_budget: memory and disk for what they are fitted to; decides no result but rounding.
        evaluation: how candidates are measured.
        notes: lines that every search on it prints.
        left_out: stage -> choice that does not fit it -> why, for `nas spaces show`.
        legend: how to read the names of its blocks.
        loading: Python lines that load a model it saved, for its card.
        references: designs to compare with, name -> stage -> choice; stages that are not named keep the teacher.
        home: where blocks and measured values are kept; None is `$NAS_HOME`.
        rules: what is allowed, on `{stage: choice name}`.
        extra_costs: further additive costs, name -> number of a module.
        levels: the graph input that says how noisy a sample is, if there is one; calibration errors are kept by its ranges.
        strict_counts: whether both counters of multiply-adds must know every operator; see `count_costs`.
    """

    name: str
    graph: StageGraph
    stages: tuple[Stage, ...]
    data: Splits
    divergence: Divergence = mean_squared_error
    loss: Loss | None = None
    save: Save | None = None
    calibration: CalibrationSettings = field(default_factory=CalibrationSettings)
    feature_budget: FeatureBudget = field(default_factory=FeatureBudget)
    evaluation: Settings = field(default_factory=Settings)
    home: Path | None = None
    notes: tuple[str, ...] = ()
    left_out: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    rules: tuple[NamedRule, ...] = ()
    extra_costs: Mapping[str, Measure] = field(default_factory=dict)
    strict_counts: bool = True
    legend: str = ""
    loading: str = LOAD_GRAPH
    references: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    levels: str | None = None

    def __post_init__(self) -> None:
        self.graph.check_stages([stage.name for stage in self.stages])
        check_forbidden(self.rules, self.stages)
        for stage in self.stages:
            for choice in stage.choices[1:]:
                if choice.recipe is not None:
                    check_spec(choice.recipe, f"block '{stage.name}/{choice.name}'")
        for name in sorted({*METRICS, *self.more_costs} & set(self.extra_costs)):
            raise InputError(f"cost '{name}' is counted already; give yours another name")
        for name, measure in self.extra_costs.items():
            function(f"cost '{name}'", measure)
        divergence_arguments(self.divergence, self.data.measure)
        if self.levels is not None and self.levels not in self.data.fit.inputs:
            raise InputError(f"levels must name an input of the samples, got '{self.levels}'{did_you_mean(self.levels, self.data.fit.inputs)}")

    def __repr__(self) -> str:
        choices = ", ".join(f"{stage.name}: {len(stage.choices)}" for stage in self.stages)
        return f"NetworkSpace('{self.name}', choices {{{choices}}}, {math.prod(len(stage.choices) for stage in self.stages):,} candidates)"

    @cached_property
    def space(self) -> SearchSpace:
        """Stages and choices, before calibration may leave some out."""
        return SearchSpace(self.name, self.stages, index_rules(self.rules, self.stages))

    @cached_property
    def teacher_key(self) -> str:
        """Hash of every parameter and buffer of the teacher, and of how its modules are built."""
        modules = nn.ModuleDict({step.name.replace(".", "/"): step.module for step in self.graph.steps})
        tensors = {**dict(modules.named_parameters()), **dict(modules.named_buffers())}
        return block_key(tensors=hash_tensors(tensors), structure=repr(modules))[:16]

    def fingerprint(self) -> dict[str, str]:
        """Short hashes of teacher, library (with how it is calibrated) and data, and of the divergence, rules, costs and numerics that were stated."""
        recipes = [[stage.name, [[c.name, c.recipe.spec if c.recipe else {}] for c in stage.choices]] for stage in self.stages]
        return {
            "teacher": self.teacher_key,
            "library": block_key(recipes=recipes, settings=repr(self.calibration))[:16],
            "data": block_key(**{name: samples.fingerprint for name, samples in self._sets().items()})[:16],
            **self._stated(),
        }

    def _stated(self) -> dict[str, str]:
        """Short hashes of what else decides results; nothing for what is left at its default."""
        numerics = self.evaluation.numerics
        stated = {
            "divergence": [code_identity(self.divergence)] if self.divergence is not mean_squared_error else [],
            "rules": [code_identity(rule) for rule in self.rules],
            "extra_costs": [[name, code_identity(measure)] for name, measure in self.extra_costs.items()],
            "numerics": [] if numerics.plain else [str(numerics)],
        }
        return {name: block_key(stated=content)[:16] for name, content in stated.items() if content}

    def calibrator(self) -> Calibrator:
        """What fits this space's surrogate blocks."""
        store = BlockStore(self.root / "blocks")
        return Calibrator(self.graph, self.teacher_key, self.data.fit, store, self.calibration, self.feature_budget, levels=self.levels)

    def costs(self) -> CostTable:
        """Exact costs of every choice, counted without calibrating anything."""
        return self.counted

    @cached_property
    def counted(self) -> CostTable:
        """The cost table, counted once."""
        return self._count(self.stages, self.uncalibrated())

    def _count(self, stages: tuple[Stage, ...], blocks: Mapping[tuple[str, str], nn.Module]) -> CostTable:
        return count_costs(self.graph, stages, blocks, self.example, self.extra_costs, strict=self.strict_counts)

    def forecast(self) -> Forecast:
        """What a search will take, from a short probe."""
        return forecast(self)

    def uncalibrated(self) -> dict[tuple[str, str], nn.Module]:
        """(stage, choice) -> surrogate block as its recipe builds it: what costs are counted and timed on."""
        return {
            (stage.name, choice.name): build_block(choice.recipe, self.graph[stage.name].module, f"{stage.name}/{choice.name}")
            for stage in self.stages
            for choice in stage.choices
            if choice.recipe is not None
        }

    @property
    def more_costs(self) -> tuple[str, ...]:
        """Costs on demand: weights in megabytes, and milliseconds where they were measured."""
        return ("memory_mb", "latency_ms")

    def cost(self, metric: str) -> tuple[Floats, float]:
        """A cost on demand, `(S, K)`, and its fixed part.

        Raises:
            InputError: no latency was measured, or in another setting.
        """
        if metric == "latency_ms":
            table = read_latency(self.latency_path)
            return table.check(Setting.of(self.inputs(table.setting.batch))).rows(self.stages)
        built, searched = self.uncalibrated(), {stage.name for stage in self.stages}
        rows = np.full((len(self.stages), max(len(stage.choices) for stage in self.stages)), np.nan)
        for s, stage in enumerate(self.stages):
            for k, choice in enumerate(stage.choices):
                rows[s, k] = weight_mb(built.get((stage.name, choice.name), self.graph[stage.name].module))
        return rows, sum(weight_mb(step.module) for step in self.graph.steps if step.name not in searched)

    def measure_latency(self, progress: Progress, batch: int = 1) -> dict[str, Any]:
        """Times every choice on the device, keeps the table, and checks its sums against 20 whole candidates; all as JSON values."""
        built, inputs = self.uncalibrated(), self.inputs(batch)
        table = measure_latency(self.graph, self.stages, built, inputs, progress)
        write_latency(self.latency_path, table)
        check = check_latency(table, self.graph, self.stages, built, inputs)
        median, largest = check.errors
        found = {"n_checked": len(check.measured), "median_error": median, "largest_error": largest, "teacher_ms": table.teacher_ms}
        return {**asdict(table), **found, "file": str(self.latency_path)}

    @property
    def latency_path(self) -> Path:
        """Where the latency table of this teacher and library is kept, one for each kind of device."""
        name = block_key(teacher=self.teacher_key, library=self.fingerprint()["library"])[:16]
        return self.root / f"latency-{name}-{self.device.type}.json"

    def inputs(self, batch: int) -> dict[str, Tensor]:
        """Graph inputs of so many samples."""
        if not 1 <= batch <= len(self.data.fit):
            raise InputError(f"batch must lie between 1 and {len(self.data.fit)}, the samples there are to fit on, got {batch}")
        return {name: value[:batch].to(self.device) for name, value in self.data.fit.inputs.items()}

    @property
    def device(self) -> torch.device:
        """Where the teacher is; samples that are elsewhere are copied there as they are needed."""
        return self.graph.device or self.data.fit.device

    def missing_blocks(self) -> list[tuple[str, str]]:
        """(stage, choice) of the blocks that the store lacks; stage by stage, so that features are collected once."""
        check_at_teacher(self.divergence, self.graph, self.data.measure)
        missing = self.calibrator().missing(self.stages)
        check_recipes(self.graph, missing, self.example)
        return [(stage.name, choice.name) for stage, choice in missing]

    def calibrate_block(self, stage: str, choice: str) -> None:
        """Calibrates one block into the store; the teacher's features are kept for the next."""
        found = next(s for s in self.stages if s.name == stage)
        list(self.calibrator().calibrate(found, [found.choices[found.index(choice)]], self._features.get(stage, Quiet())))

    def packed_blocks(self) -> dict[str, tuple[bytes, bytes]]:
        """Every block of the space that the store holds, by content key."""
        calibrator = self.calibrator()
        keys = [calibrator.key(stage, choice) for stage in self.stages for choice in stage.choices[1:]]
        return {key: calibrator.store.packed(key) for key in keys if key in calibrator.store}

    def receive_blocks(self, blocks: Mapping[str, tuple[bytes, bytes]]) -> None:
        """Stores blocks that another machine calibrated, each checked against its manifest."""
        for key, packed in blocks.items():
            self.calibrator().store.unpack(key, packed)

    @cached_property
    def _features(self) -> FeatureBank:
        return FeatureBank(self.graph, self.data.fit, [stage.name for stage in self.stages], self.feature_budget)

    def prepare(self, progress: Progress, left_out: Mapping[tuple[str, str], str] | None = None) -> Task:
        """Checks and calibrates the blocks, those `left_out` with a reason apart; counts costs, opens the evaluators."""
        check_at_teacher(self.divergence, self.graph, self.data.measure)
        calibrator = self.calibrator()
        check_recipes(self.graph, calibrator.missing(self.stages), self.example)
        resting = torch.device("cpu") if self.device.type == "cuda" else None  # the evaluators take them to the device, as many as fit
        assembly = Assembly(self, replace(calibrator, rest=resting).run(self.stages, progress, left_out))
        evaluator = assembly.evaluator(self.data.measure)
        expected, why_not = assembly.expected_losses(progress)
        whole = assembly.stages == self.stages  # counts do not depend on what the weights are
        return Task(
            SearchSpace(self.name, assembly.stages, index_rules(self.rules, assembly.stages)),
            self.counted if whole else self._count(assembly.stages, {name: block for name, block in self.uncalibrated().items() if name in assembly.modules}),
            evaluator,
            calibration_errors(assembly.stages, assembly.blocks),
            expected,
            scale=evaluator.teacher_variance if self.divergence is mean_squared_error else None,
            verifier=assembly.verifier,
            heldout_loss=assembly.heldout_loss if self.loss else None,
            export=assembly.export,
            notes=(*self.notes, *self.counted.notes, *self._numerics_note(evaluator), *why_not),
            blocks={f"{stage}/{choice}": block.key for (stage, choice), block in assembly.blocks.items()},
            curves={f"{stage}/{choice}": block.record.curve for (stage, choice), block in assembly.blocks.items() if block.record.curve},
            by_level={f"{stage}/{choice}": block.record.by_level for (stage, choice), block in assembly.blocks.items() if block.record.by_level},
            flow=self.graph.dag,
            legend=self.legend,
            loading=self.loading,
            divergence=SQUARED if self.divergence is mean_squared_error else described(self.divergence),
            references=self.references,
        )

    def write_model(self, chosen: Mapping[str, tuple[Choice, nn.Module]], folder: Path, beside: Mapping[str, str] | None = None) -> None:
        """Writes the model with the given blocks at the given stages into a folder, which appears only when it is whole.

        `beside` are further text files, name -> content.
        """
        try:
            with whole_folder(folder) as draft:
                if self.save is None:
                    save_model(self.graph, chosen, draft)
                else:
                    self.save(chosen, draft)
                for name, text in (beside or {}).items():
                    (draft / name).write_text(text, encoding="utf-8")
        except (OSError, SafetensorError) as error:  # the second of diffusers, for a full disk too
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"cannot write the model to {folder}: {reason}; nothing else is lost") from error

    def _numerics_note(self, evaluator: DivergenceEvaluator) -> tuple[str, ...]:
        numerics = self.evaluation.numerics
        if numerics.plain:
            return ()
        return (f"measured with {numerics}: the teacher's output differs from fp32 by {evaluator.numeric_error():.1e} of its variance (mean squared)",)

    @property
    def example(self) -> dict[str, Tensor]:
        """One sample's inputs: what costs are counted on."""
        return self.inputs(1)

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

    def expected_losses(self, progress: Progress) -> tuple[Floats | None, tuple[str, ...]]:
        """What each block is expected to cost alone on the measure set, kept once computed; where it cannot be, None and a note that says why."""
        network, samples = self._network, self._network.data.measure
        few = samples.rows(slice(0, None, -(-len(samples) // LOOKED_AT)))
        blocks = {stage.name: [self._module(stage, choice) for choice in stage.choices[1:]] for stage in self.stages}
        keys = [[self.blocks[stage.name, c.name].key for c in stage.choices[1:]] for stage in self.stages]
        if not any(keys):
            return None, ()
        told = [network.teacher_key, few.fingerprint, code_identity(network.divergence), network.device.type, torch.__version__]
        key = EXPECTED + block_key(version=_EXPECTED_VERSION, blocks=keys, told=told)
        known, shape = self._cache.get(key), (len(keys), 1 + max(map(len, keys)))
        if len(known) != math.prod(shape):
            try:
                settings, budget = network.evaluation, network.evaluation.resident_bytes(network.device)
                known = expected_losses(network.graph, blocks, network.divergence, few, progress, chunk=settings.chunk, budget=budget).ravel()
            except NoExpansion as reason:
                return None, (
                    f"the search starts from calibration errors alone, since what blocks will cost cannot be foreseen: {reason}; it may take more measurements",
                )
            self._cache.put(key, known)
        return known.reshape(shape), ()

    def heldout_loss(self, candidate: Candidate) -> float:
        """The task's own loss of a candidate on the verify set, the same noise for all."""
        if self._network.loss is None:
            raise InputError(f"space '{self._network.name}' states no task loss")
        output = self.verifier.outputs(candidate)
        with user_code(f"the loss of space '{self._network.name}'"):
            return self._network.loss(output, self._network.data.verify)

    def export(self, candidate: Candidate, folder: Path) -> None:
        """Writes the candidate as a model into a folder, which appears only when it is whole."""
        chosen = {stage.name: (stage.choices[k], self._module(stage, stage.choices[k])) for stage, k in zip(self.stages, candidate, strict=True) if k}
        self._network.write_model(chosen, folder)

    def _module(self, stage: Stage, choice: Choice) -> nn.Module:
        return self._network.graph[stage.name].module if choice.recipe is None else self.modules[stage.name, choice.name]
