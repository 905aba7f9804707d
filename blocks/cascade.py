"""Cascade calibration: the blocks of one candidate fitted again in order, each on what the blocks before it really hand on.

Calibrated alone (Eq. 8 of [TOC-SR]) a block sees the teacher's own features; in an assembled candidate it sees those of stages that were replaced. Here it
is fitted to what the teacher's block would do with what it really gets:

    min_s  E || s(x') - B_T(x') ||^2,   x' what the stage reads in the candidate, its earlier stages already recalibrated
"""

import copy
import time
from collections.abc import Mapping
from dataclasses import asdict, replace

import torch
from torch import Tensor, nn

from nas.blocks.calibration import CalibratedBlock, CalibrationSettings, Calibrator, Diverged, calibrate_block
from nas.blocks.features import StageFeatures, collect_features
from nas.blocks.store import BlockRecord, block_key
from nas.errors import DamagedFile
from nas.graph import call_step
from nas.progress import Progress, Quiet

SETTINGS = CalibrationSettings(lr=1e-3)


class Cascade:
    """Recalibrates candidates of one library; what two candidates share up to a stage is fitted once and kept in the block store."""

    def __init__(self, calibrator: Calibrator, settings: CalibrationSettings = SETTINGS) -> None:
        self._calibrator, self._settings = calibrator, settings

    def run(self, chosen: Mapping[str, CalibratedBlock], progress: Progress) -> dict[str, CalibratedBlock]:
        """The chosen blocks (stage -> block; the other stages keep the teacher's), each fitted to the ones before it.

        The first one reads what the teacher hands it and stays as it is; one whose fit fails does too.
        """
        graph, done = self._calibrator.graph, dict[str, CalibratedBlock]()
        in_order = [step.name for step in graph.steps if step.name in chosen]
        for stage in progress.track(in_order, "recalibrating blocks"):
            before = {name: done[name].key for name in in_order if name in done and name in graph.ancestors[stage]}
            done[stage] = self._refit(stage, chosen[stage], before, done) if before else chosen[stage]
        return done

    def _refit(self, stage: str, block: CalibratedBlock, before: Mapping[str, str], done: Mapping[str, CalibratedBlock]) -> CalibratedBlock:
        store = self._calibrator.store
        key = block_key(cascade=2, block=block.key, before=dict(before), settings=asdict(self._settings))
        module = copy.deepcopy(block.module)
        if key in store:
            try:
                return self._stored(key, block, module)
            except DamagedFile:
                store.drop(key)
        record, weights = self._fitted(stage, block, module, {name: fitted.module for name, fitted in done.items()})
        store.put(key, record, weights)
        return self._stored(key, block, module)

    def _fitted(self, stage: str, block: CalibratedBlock, module: nn.Module, blocks: Mapping[str, nn.Module]) -> tuple[BlockRecord, dict[str, Tensor]]:
        started, calibrator = time.monotonic(), self._calibrator
        features = collect_features(calibrator.graph, [stage], calibrator.samples, Quiet(), blocks=blocks)[stage]
        try:
            errors, steps = calibrate_block(module.requires_grad_(True), replace(features, writes=_answers(features)), self._settings)
        except Diverged as failure:
            return replace(block.record, error=None, errors={}, by_level={}, curve=(), reason=str(failure)), {}
        error, seconds = sum(errors.values()) / len(errors), round(time.monotonic() - started, 3)
        record = replace(block.record, error=error, errors=errors, by_level={}, curve=(), steps=steps, seconds=seconds)
        return record, dict(module.state_dict())

    def _stored(self, key: str, block: CalibratedBlock, module: nn.Module) -> CalibratedBlock:
        """The block as it is kept, or as it came where its fit failed."""
        record = self._calibrator.store.record(key)
        if record.error is None:
            return block
        module.load_state_dict(self._calibrator.store.weights(key))
        return CalibratedBlock(module.eval().requires_grad_(False), key, record)


@torch.no_grad()
def _answers(features: StageFeatures, batch_size: int = 64) -> tuple[Tensor, ...]:
    """What the teacher's block makes of what the stage reads."""
    parts = [call_step(features.step, features.step.module, features.batch(rows)[0]) for rows in torch.split(torch.arange(len(features.groups)), batch_size)]
    return tuple(torch.cat(values) for values in zip(*parts, strict=True))
