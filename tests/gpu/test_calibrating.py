"""Calibrating blocks on CUDA: as good as on the CPU, nobody waiting for a step, features wherever they fit."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nas.blocks.calibration import CalibrationSettings, Calibrator, calibrate_block
from nas.blocks.features import FeatureBank, FeatureBudget, Features, RecomputedFeatures, StageFeatures, collect_features
from nas.blocks.fit import Fit
from nas.blocks.store import BlockStore
from nas.graphed import WARM_UP
from nas.progress import Quiet
from nas.spaces.network import NetworkSpace
from nas.spaces.tocsr.space import tocsr_unet

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

DEVICE = "cuda"
STAGE, CHOICE = "down1", 1
SETTINGS = CalibrationSettings(max_steps=50)


@pytest.fixture(scope="module")
def space() -> NetworkSpace:
    return tocsr_unet(device=DEVICE)


@pytest.fixture(scope="module")
def features(space: NetworkSpace) -> StageFeatures:
    return collect_features(space.graph, [STAGE], space.data.fit, Quiet())[STAGE]


def block_of(space: NetworkSpace) -> torch.nn.Module:
    torch.manual_seed(0)
    return space.uncalibrated()[STAGE, space.stages[1].choices[CHOICE].name]


def test_errors_are_near_the_cpus(space: NetworkSpace, features: StageFeatures) -> None:
    there, steps = calibrate_block(block_of(space), features, SETTINGS)
    cpu = tocsr_unet()
    here, same = calibrate_block(block_of(cpu), collect_features(cpu.graph, [STAGE], cpu.data.fit, Quiet())[STAGE], SETTINGS)
    assert steps == same
    assert there == pytest.approx(here, rel=0.1)


def test_nobody_waits_for_a_step(space: NetworkSpace, features: StageFeatures) -> None:
    fit, batch = Fit(block_of(space), features.step, features.output_variances, SETTINGS), features.batch(torch.arange(SETTINGS.batch_size))
    for _ in range(WARM_UP + 1):
        fit.advance(batch)
    assert fit._descend.recorded
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        fit.advance(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    fit.judge(torch.zeros(2))
    assert not fit.failure


def test_the_random_numbers_of_the_device_are_as_before(space: NetworkSpace, tmp_path: Path) -> None:
    calibrator = Calibrator(space.graph, "t", space.data.fit, BlockStore(tmp_path), SETTINGS)
    before = torch.cuda.get_rng_state()
    calibrator._build(space.stages[1], space.stages[1].choices[CHOICE])
    assert torch.equal(torch.cuda.get_rng_state(), before)


@pytest.mark.parametrize("where", ["files", "recomputed"])
def test_features_that_the_device_does_not_hold_come_as_they_are_needed(space: NetworkSpace, features: StageFeatures, tmp_path: Path, where: str) -> None:
    found: Features
    if where == "files":
        bank = FeatureBank(space.graph, space.data.fit, [STAGE], FeatureBudget(memory_mb=0, folder=tmp_path))
        found = bank.get(STAGE, Quiet())
    else:
        found = RecomputedFeatures(space.graph, space.graph[STAGE], space.data.fit)
    rows = torch.tensor([5, 700, 3])
    for a, b in zip((*features.batch(rows)[0], *features.batch(rows)[1]), (*found.batch(rows)[0], *found.batch(rows)[1]), strict=True):
        assert b.device.type == DEVICE
        torch.testing.assert_close(a, b, rtol=2e-3, atol=2e-3)
    errors, _ = calibrate_block(block_of(space), found, replace(SETTINGS, max_steps=25))
    assert all(0 < error < 1 for error in errors.values())


def test_blocks_of_the_device_and_of_the_cpu_are_the_same_files(space: NetworkSpace, tmp_path: Path) -> None:
    short = replace(space, calibration=CalibrationSettings(max_steps=25), home=tmp_path, stages=space.stages[1:2])
    made = replace(short.calibrator(), rest=torch.device("cpu")).run(short.stages, Quiet())
    assert {next(block.module.parameters()).device.type for block in made.values()} == {"cpu"}
    cpu = tocsr_unet()
    there = replace(cpu, calibration=short.calibration, home=tmp_path, stages=cpu.stages[1:2])
    assert there.calibrator().missing(there.stages) == []
    for name, block in there.calibrator().run(there.stages, Quiet()).items():
        for key, value in block.module.state_dict().items():
            assert torch.equal(value, made[name].module.state_dict()[key])
