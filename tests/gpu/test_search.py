"""The main job, and latency, on CUDA."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import nas
from nas.blocks.calibration import CalibrationSettings
from nas.errors import InputError
from nas.evaluators.cache import EvaluationCache
from nas.evaluators.latency import Setting, read_latency
from nas.progress import Quiet
from nas.spaces.network import NetworkSpace
from nas.spaces.tocsr import CompactUNet
from nas.spaces.tocsr.space import tocsr_unet

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

DEVICE = "cuda"


def few_choices(space: NetworkSpace) -> NetworkSpace:
    """The teacher and two surrogate blocks a stage, fitted in a few steps."""
    stages = tuple(replace(stage, choices=stage.choices[:3]) for stage in space.stages)
    return replace(space, stages=stages, calibration=CalibrationSettings(max_steps=25), references={})


def test_a_search_finds_saves_and_reloads_a_winner(home: Path, tmp_path: Path) -> None:
    space = few_choices(tocsr_unet(device=DEVICE))
    result = nas.search(space, 0.02, trials=8, workdir=tmp_path / "runs")
    (winner,) = result.winners
    assert winner.feasible
    assert winner.trial is not None
    model = CompactUNet.from_pretrained(result.paths[0.02]).eval()
    samples = space.data.measure.to("cpu")
    with torch.no_grad():
        wrong = (model.graph.run(samples.inputs) - tocsr_unet().graph.run(samples.inputs)).square().mean()
    assert float(wrong) == pytest.approx(winner.trial.divergence, rel=0.2)
    again = nas.search(space, 0.02, trials=8, workdir=tmp_path / "again")
    assert [t.candidate for t in again.study.trials] == [t.candidate for t in result.study.trials]
    assert all(t.divergence == u.divergence for t, u in zip(again.study.trials, result.study.trials, strict=True))


def test_a_recurring_search_measures_nothing_again(home: Path) -> None:
    space = few_choices(tocsr_unet(device=f"{DEVICE}:0"))
    first = nas.search(space, 0.02, trials=3, optimizer="random", workdir=None)
    second = nas.search(space, 0.02, trials=3, optimizer="random", workdir=None)
    assert second.to_json()["n_measured"] < first.to_json()["n_measured"]


def test_latency_is_the_devices_and_refused_elsewhere(home: Path) -> None:
    space = few_choices(tocsr_unet(device=DEVICE))
    found = space.measure_latency(Quiet(), batch=4)
    assert found["setting"]["device"] == torch.cuda.get_device_name()
    assert found["n_checked"] == 20
    assert 0 < found["median_error"] < 1
    assert found["teacher_ms"] > 0
    table = read_latency(space.latency_path)
    with pytest.raises(InputError, match="another setting"):
        table.check(Setting.of(tocsr_unet().inputs(4)))
    result = nas.search(space, 1e9, minimize="latency_ms", optimizer="random", trials=2, workdir=None)
    assert result.winners[0].trial is not None


def test_the_teacher_and_samples_may_lie_on_different_sides(home: Path) -> None:
    space = few_choices(tocsr_unet(device=DEVICE))
    apart = replace(space, data=replace(space.data, fit=space.data.fit.to("cpu"), measure=space.data.measure.to("cpu"), verify=space.data.verify.to("cpu")))
    assert apart.fingerprint() == space.fingerprint()
    a = nas.search(space, 0.02, trials=3, optimizer="random", workdir=None)
    EvaluationCache(space.root / "evaluations.db").drop()
    b = nas.search(apart, 0.02, trials=3, optimizer="random", workdir=None)
    assert b.to_json()["n_measured"] >= 3
    assert [t.divergence for t in a.study.trials] == [t.divergence for t in b.study.trials]
