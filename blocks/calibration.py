"""Feature-wise distillation: each surrogate block is fitted alone to imitate the teacher's block (Eq. 7-8 of [TOC-SR])."""

import math
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from nas.blocks.building import build_block
from nas.blocks.features import FeatureBank, FeatureBudget, Features, split_features
from nas.blocks.fit import CalibrationSettings as CalibrationSettings
from nas.blocks.fit import Diverged as Diverged
from nas.blocks.fit import Fit, fit_together
from nas.blocks.fit import calibrate_block as calibrate_block
from nas.blocks.levels import errors_by_level
from nas.blocks.store import BlockRecord, BlockStore, block_key
from nas.checkpoint import load_checkpoint, save_checkpoint
from nas.data import Samples
from nas.devices import repeatable
from nas.errors import DamagedFile, DoesNotFit
from nas.files import check_writable
from nas.graph import StageGraph
from nas.progress import Notes, Progress
from nas.space import Choice, Stage

SAVE_S = 30.0
"""Seconds between two savings of blocks that are being fitted."""


@dataclass(frozen=True)
class CalibratedBlock:
    """A choice that is ready to be assembled: its module, its key in the store and its record."""

    module: nn.Module
    key: str
    record: BlockRecord


@dataclass(frozen=True)
class Calibrator:
    """Fits what the store lacks, for the stages of one teacher on one `fit` set.

    Blocks are fitted where the teacher is; `rest` is where they are handed out, by default there too. `levels` names the input that says how noisy a
    sample is, if there is one.
    """

    graph: StageGraph
    teacher_key: str
    samples: Samples
    store: BlockStore
    settings: CalibrationSettings = field(default_factory=CalibrationSettings)
    budget: FeatureBudget | None = None
    rest: torch.device | None = None
    levels: str | None = None

    def key(self, stage: Stage, choice: Choice) -> str:
        """Content key of a block: teacher, stage, recipe, data and settings."""
        spec = choice.recipe.spec if choice.recipe is not None else {}
        return block_key(teacher=self.teacher_key, stage=stage.name, spec=spec, data=self.samples.fingerprint, settings=asdict(self.settings))

    def missing(self, stages: tuple[Stage, ...]) -> list[tuple[Stage, Choice]]:
        """The surrogate blocks that the store does not hold yet."""
        return [(stage, choice) for stage in stages for choice in stage.choices[1:] if self.key(stage, choice) not in self.store]

    def run(
        self, stages: tuple[Stage, ...], progress: Progress, left_out: Mapping[tuple[str, str], str] | None = None
    ) -> dict[tuple[str, str], CalibratedBlock]:
        """(stage, choice) -> calibrated block, for every surrogate that could be fitted; the others are noted with their reason.

        Blocks `left_out`, each with its reason, are not tried.
        """
        reasons = dict(left_out or {})
        self._fill([(stage, choice) for stage, choice in self.missing(stages) if (stage.name, choice.name) not in reasons], progress)
        blocks = {}
        for stage in stages:
            for choice in stage.choices[1:]:
                name = (stage.name, choice.name)
                block = None if name in reasons else self._load(stage, choice, progress)
                if block is None:
                    reason = reasons.get(name) or self.store.record(self.key(stage, choice)).reason
                    progress.note(f"block '{stage.name}/{choice.name}' is left out: {reason}")
                else:
                    blocks[name] = block
        return blocks

    def _fill(self, missing: list[tuple[Stage, Choice]], progress: Progress) -> None:
        if not missing:
            return
        check_writable(self.store.root, "set NAS_HOME to a writable folder with space")
        bank = FeatureBank(self.graph, self.samples, list(dict.fromkeys(stage.name for stage, _ in missing)), self.budget)
        bank.get(missing[0][0].name, progress)
        stored = self._fitted(missing, bank, progress)
        for _ in progress.track(missing, "calibrating blocks"):
            next(stored)

    def _fitted(self, missing: list[tuple[Stage, Choice]], bank: FeatureBank, progress: Progress) -> Iterator[Choice]:
        """Fits the blocks, those of a stage together; yields each when it is stored."""
        for name, stage in {stage.name: stage for stage, _ in missing}.items():
            choices = [choice for its, choice in missing if its.name == name]
            yield from self.calibrate(stage, choices, bank.get(name, Notes(progress)))

    def calibrate(self, stage: Stage, choices: Sequence[Choice], features: Features) -> Iterator[Choice]:
        """Fits blocks of one stage together; yields each once it, or the reason why it could not be fitted, is stored.

        Every `SAVE_S` seconds the unfinished ones are saved, and go on from there if this process is killed.
        """
        fits = {choice.name: self._begun(stage, choice, features) for choice in choices}
        saved = time.monotonic()
        with repeatable(self.graph.device or "cpu"):
            for fit, ended in fit_together(list(fits.values()), features, self.settings):
                if ended:
                    choice = next(choice for choice in choices if fits.get(choice.name) is fit)
                    self._put(stage, choice, fits.pop(choice.name), features)
                    yield choice
                elif time.monotonic() - saved > SAVE_S:
                    for choice in choices:
                        if choice.name in fits:
                            save_checkpoint(self.store.unfinished(self.key(stage, choice)), fits[choice.name].state())
                    saved = time.monotonic()

    def _begun(self, stage: Stage, choice: Choice, features: Features) -> Fit:
        """A fit from the start, or from where a killed process saved it."""
        fit = Fit(self._build(stage, choice), features.step, features.output_variances, self.settings)
        path = self.store.unfinished(self.key(stage, choice))
        if path.exists():
            try:
                fit.restore(load_checkpoint(path))
            except Exception:  # damaged, or of another form: only time is lost
                return Fit(self._build(stage, choice), features.step, features.output_variances, self.settings)
        return fit

    def _put(self, stage: Stage, choice: Choice, fit: Fit, features: Features) -> None:
        errors = dict(zip(features.step.writes, fit.errors.tolist(), strict=True))
        record = BlockRecord(stage.name, choice.name, choice.recipe.spec if choice.recipe else {}, None, seconds=round(fit.seconds, 3), reason=fit.failure)
        if not fit.failure:
            record = replace(record, error=sum(errors.values()) / len(errors), errors=errors, steps=fit.steps, curve=tuple(fit.curve))
            if self.levels is not None:
                _, heldout = split_features(features, self.settings.heldout)
                record = replace(record, by_level=errors_by_level(fit.block, features, heldout, self.samples.inputs[self.levels]))
        key = self.key(stage, choice)
        self.store.put(key, record, {} if fit.failure else fit.block.state_dict())
        shutil.rmtree(self.store.unfinished(key).parent, ignore_errors=True)

    def _load(self, stage: Stage, choice: Choice, progress: Progress) -> CalibratedBlock | None:
        key = self.key(stage, choice)
        try:
            return self._from_store(key, stage, choice)
        except DamagedFile as error:
            progress.note(f"{error}; calibrating it again")
            self.store.drop(key)
            self._fill([(stage, choice)], progress)
            return self._from_store(key, stage, choice)

    def _from_store(self, key: str, stage: Stage, choice: Choice) -> CalibratedBlock | None:
        """The block as it is kept; None if its calibration failed.

        Raises:
            DamagedFile: the file is not what its manifest vouches for, or holds other tensors than the block has.
        """
        record = self.store.record(key)
        if record.error is None:
            return None
        module, weights = self._build(stage, choice), self.store.weights(key)
        _check_tensors(f"block '{stage.name}/{choice.name}' in {self.store.root}", module.state_dict(), weights)
        module.load_state_dict(weights)
        module.eval().requires_grad_(False)
        return CalibratedBlock(module if self.rest is None else module.to(self.rest), key, record)

    def _build(self, stage: Stage, choice: Choice) -> nn.Module:
        if choice.recipe is None:
            raise DoesNotFit(f"choice '{stage.name}/{choice.name}' has no recipe to build a block from")
        device = self.graph.device
        with torch.random.fork_rng(devices=[device] if device is not None and device.type == "cuda" else []):
            torch.manual_seed(self.settings.seed)
            return build_block(choice.recipe, self.graph[stage.name].module, f"{stage.name}/{choice.name}").eval().requires_grad_(True)


def calibration_errors(stages: tuple[Stage, ...], blocks: dict[tuple[str, str], CalibratedBlock]) -> Any:
    """`(S, K)` held-out errors for the stages' choices: 0 for the teacher, NaN where a stage has fewer choices."""
    table = torch.full((len(stages), max(len(stage.choices) for stage in stages)), math.nan, dtype=torch.float64)
    table[:, 0] = 0.0
    for s, stage in enumerate(stages):
        for k, choice in enumerate(stage.choices[1:], start=1):
            error = blocks[stage.name, choice.name].record.error
            table[s, k] = math.nan if error is None else error
    return table.numpy()


def _check_tensors(where: str, wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Raises unless both have the same names with the same shapes and types; names the first three that differ."""
    differing = [
        f"'{name}' must be {_described(wanted.get(name))}, got {_described(found.get(name))}"
        for name in sorted({*wanted, *found})
        if _described(wanted.get(name)) != _described(found.get(name))
    ]
    if differing:
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise DamagedFile(f"{where} holds other tensors: {'; '.join(differing[:3])}{more}")


def _described(tensor: Tensor | None) -> str:
    return "nothing" if tensor is None else f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
