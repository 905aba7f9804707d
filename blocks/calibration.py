"""Feature-wise distillation: each surrogate block is fitted alone to imitate the teacher's block (Eq. 7-8 of [TOC-SR])."""

import copy
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from nas.blocks.building import build_block
from nas.blocks.features import FeatureBank, FeatureBudget, Features, split_features
from nas.blocks.ridge import solve_ends
from nas.blocks.store import BlockRecord, BlockStore, block_key
from nas.data import Samples
from nas.errors import DamagedFile, DoesNotFit
from nas.graph import StageGraph, call_step
from nas.progress import Notes, Progress
from nas.space import Choice, Stage


@dataclass(frozen=True, slots=True)
class CalibrationSettings:
    """How long and how fast a block is fitted; part of its key.

    Adam at `lr`, cosine decay over `max_steps`; every `check_every` steps the held-out error is taken, and the fit ends once it
    has not fallen by `tolerance` (relative) for `patience` checks. The best state seen is kept, and with `finish` the linear maps that its
    outputs end in are solved in closed form (`nas.blocks.ridge`).
    """

    max_steps: int = 300
    batch_size: int = 32
    lr: float = 2e-3
    check_every: int = 25
    patience: int = 3
    tolerance: float = 0.01
    heldout: float = 0.2
    seed: int = 0
    finish: bool = True
    version: int = 1


class Diverged(Exception):
    """The fit met a non-finite loss; the message says where."""


def calibrate_block(block: nn.Module, features: Features, settings: CalibrationSettings) -> tuple[dict[str, float], int]:
    """Fits the block in place; returns its held-out error (MSE / variance) by output name and the steps taken."""
    fit, heldout = split_features(features, settings.heldout)
    optimizer = torch.optim.Adam([p for p in block.parameters() if p.requires_grad], lr=settings.lr) if _trainable(block) else None
    best, best_state, stale, steps = held_out_errors(block, features, heldout), None, 0, 0
    order = torch.Generator().manual_seed(settings.seed)
    while optimizer is not None and steps < settings.max_steps and stale < settings.patience:
        for _ in range(settings.check_every):
            optimizer.param_groups[0]["lr"] = settings.lr * (0.05 + 0.95 * (1 + math.cos(math.pi * steps / settings.max_steps)) / 2)
            rows = fit[torch.randint(len(fit), (settings.batch_size,), generator=order)]
            loss = relative_errors(block, features, rows).mean()
            if not torch.isfinite(loss):
                raise Diverged(f"loss became {loss.item()} at step {steps}, lr {optimizer.param_groups[0]['lr']:.1e}")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(block.parameters(), 1.0)
            optimizer.step()
            steps += 1
        errors = held_out_errors(block, features, heldout)
        stale = 0 if errors.mean() < best.mean() * (1 - settings.tolerance) else stale + 1
        if errors.mean() < best.mean():
            best, best_state = errors, copy.deepcopy(block.state_dict())
    if best_state is not None:
        block.load_state_dict(best_state)
    if settings.finish and torch.isfinite(best).all() and solve_ends(block, features, fit, heldout, lambda: held_out_errors(block, features, heldout).mean()):
        best = held_out_errors(block, features, heldout)
    if not torch.isfinite(best).all():
        raise Diverged(f"held-out error is {best.tolist()} after {steps} steps")
    return dict(zip(features.step.writes, best.tolist(), strict=True)), steps


def relative_errors(block: nn.Module, features: Features, rows: Tensor) -> Tensor:
    """MSE / variance of each output on the given samples, `(n_outputs,)` (Eq. 8, each output scaled by its variance)."""
    reads, targets = features.batch(rows)
    written = call_step(features.step, block, reads)
    errors = []
    for value, target, variance in zip(written, targets, features.output_variances, strict=True):
        errors.append((value - target).square().mean() / (variance or 1.0))
    return torch.stack(errors)


def held_out_errors(block: nn.Module, features: Features, rows: Tensor, batch_size: int = 64) -> Tensor:
    """The same without gradients, over any number of samples."""
    with torch.no_grad():
        parts = [relative_errors(block, features, part) * len(part) for part in torch.split(rows, batch_size)]
    return torch.stack(parts).sum(0) / len(rows)


def _trainable(block: nn.Module) -> bool:
    return any(p.requires_grad for p in block.parameters())


@dataclass(frozen=True)
class CalibratedBlock:
    """A choice that is ready to be assembled: its module, its key in the store and its record."""

    module: nn.Module
    key: str
    record: BlockRecord


@dataclass(frozen=True)
class Calibrator:
    """Fits what the store lacks, for the stages of one teacher on one `fit` set."""

    graph: StageGraph
    teacher_key: str
    samples: Samples
    store: BlockStore
    settings: CalibrationSettings = CalibrationSettings()
    budget: FeatureBudget | None = None

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
        bank = FeatureBank(self.graph, self.samples, list(dict.fromkeys(stage.name for stage, _ in missing)), self.budget)
        bank.get(missing[0][0].name, progress)
        for stage, choice in progress.track(missing, "calibrating blocks"):
            self.calibrate(stage, choice, bank.get(stage.name, Notes(progress)))

    def calibrate(self, stage: Stage, choice: Choice, features: Features) -> None:
        """Fits one block and stores it, or stores the reason why it could not be fitted."""
        started = time.monotonic()
        record = BlockRecord(stage.name, choice.name, choice.recipe.spec if choice.recipe else {}, None)
        weights: dict[str, Tensor] = {}
        try:
            module = self._build(stage, choice)
            errors, steps = calibrate_block(module, features, self.settings)
            weights = module.state_dict()
            record = replace(record, error=sum(errors.values()) / len(errors), errors=errors, steps=steps)
        except Diverged as failure:
            record = replace(record, reason=str(failure))
        self.store.put(self.key(stage, choice), replace(record, seconds=round(time.monotonic() - started, 3)), weights)

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
        return CalibratedBlock(module.eval().requires_grad_(False), key, record)

    def _build(self, stage: Stage, choice: Choice) -> nn.Module:
        if choice.recipe is None:
            raise DoesNotFit(f"choice '{stage.name}/{choice.name}' has no recipe to build a block from")
        with torch.random.fork_rng(devices=[]):
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
