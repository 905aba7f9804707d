"""Cascade calibration: what each block is fitted to, what stays, and that nothing is fitted twice."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nas.blocks import cascade as module
from nas.blocks.calibration import CalibratedBlock, CalibrationSettings, Calibrator, Diverged
from nas.blocks.cascade import Cascade
from nas.blocks.features import collect_features, split_features
from nas.blocks.fit import held_out_errors
from nas.blocks.store import BlockStore
from nas.data import Splits
from nas.graph import StageGraph, call_step
from nas.progress import Quiet
from nas.space import Stage

SETTINGS = CalibrationSettings(max_steps=50, lr=5e-3)


@pytest.fixture
def calibrator(graph: StageGraph, splits: Splits, tmp_path: Path) -> Calibrator:
    return Calibrator(graph, "teacher", splits.fit, BlockStore(tmp_path / "blocks"), CalibrationSettings(max_steps=100))


@pytest.fixture
def chosen(calibrator: Calibrator, stages: tuple[Stage, ...]) -> dict[str, CalibratedBlock]:
    """The smallest block at `a` and `c`; `b` keeps the teacher's."""
    blocks = calibrator.run(stages, Quiet())
    return {stage: blocks[stage, "tiny"] for stage in "ac"}


def test_blocks_are_fitted_to_what_the_teachers_block_makes_of_their_real_input(calibrator: Calibrator, chosen: dict[str, CalibratedBlock]) -> None:
    done = Cascade(calibrator, SETTINGS).run(chosen, Quiet())
    assert done["a"] is chosen["a"]
    assert done["c"].key != chosen["c"].key
    graph, samples = calibrator.graph, calibrator.samples
    features = collect_features(graph, ["c"], samples, Quiet(), blocks={"a": chosen["a"].module})["c"]
    h, skip = features.reads
    inside = dict(samples.inputs)
    for step in graph.steps[:3]:
        inside.update(
            zip(step.writes, call_step(step, chosen["a"].module if step.name == "a" else step.module, tuple(inside[n] for n in step.reads)), strict=True)
        )
    assert torch.equal(h, inside["h"])
    assert torch.equal(skip, inside["skip"])
    wanted = module._answers(features)
    assert torch.allclose(wanted[0], graph["c"].module(h, skip))
    rows = split_features(features)[1]
    before, after = (float(held_out_errors(blocks["c"].module, replace(features, writes=wanted), rows)) for blocks in (chosen, done))
    assert after < before
    assert done["c"].record.error == pytest.approx(after, rel=1e-3)


def test_what_was_fitted_once_is_read_from_the_store(calibrator: Calibrator, chosen: dict[str, CalibratedBlock], monkeypatch: pytest.MonkeyPatch) -> None:
    first = Cascade(calibrator, SETTINGS).run(chosen, Quiet())

    def never(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(module, "calibrate_block", never)
    again = Cascade(calibrator, SETTINGS).run(chosen, Quiet())
    assert {stage: block.key for stage, block in again.items()} == {stage: block.key for stage, block in first.items()}
    assert all(torch.equal(a, b) for a, b in zip(first["c"].module.parameters(), again["c"].module.parameters(), strict=True))


def test_a_damaged_block_is_fitted_again_and_one_that_cannot_be_fitted_stays(
    calibrator: Calibrator, chosen: dict[str, CalibratedBlock], monkeypatch: pytest.MonkeyPatch
) -> None:
    key = Cascade(calibrator, SETTINGS).run(chosen, Quiet())["c"].key
    path = calibrator.store.folder(key) / "block.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert Cascade(calibrator, SETTINGS).run(chosen, Quiet())["c"].key == key

    def diverges(*_: object) -> None:
        raise Diverged("loss became nan")

    monkeypatch.setattr(module, "calibrate_block", diverges)
    assert Cascade(calibrator, CalibrationSettings(max_steps=7)).run(chosen, Quiet())["c"] is chosen["c"]
