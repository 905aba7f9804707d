from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nas.blocks import calibration as module
from nas.blocks.calibration import CalibrationSettings, Calibrator, calibrate_block, calibration_errors
from nas.blocks.features import collect_features, split_features
from nas.blocks.fit import held_out_errors
from nas.blocks.store import BlockStore
from nas.data import Splits
from nas.errors import InputError
from nas.graph import StageGraph
from nas.progress import Quiet
from nas.space import Choice, Stage
from tests.conftest import Down, Narrow

FAST = CalibrationSettings(max_steps=60, check_every=20)


@pytest.fixture
def calibrator(graph: StageGraph, splits: Splits, tmp_path: Path) -> Calibrator:
    return Calibrator(graph, "toy", splits.fit, BlockStore(tmp_path), FAST)


def test_features_are_what_the_teacher_reads_and_writes(graph: StageGraph, splits: Splits) -> None:
    features = collect_features(graph, ["b", "c"], splits.fit, Quiet(), batch_size=50)
    with torch.no_grad():
        h, skip = graph["a"].module(graph["stem"].module(splits.fit.inputs["x"]))
        h_b, other = graph["b"].module(h)
    for got, want in zip((*features["b"].reads, *features["b"].writes, *features["c"].reads), (h, h_b, other, h_b, skip), strict=True):
        torch.testing.assert_close(got, want)


def test_features_of_neighbours_share_memory(graph: StageGraph, splits: Splits) -> None:
    features = collect_features(graph, ["a", "b"], splits.fit, Quiet())
    assert features["a"].writes[0].data_ptr() == features["b"].reads[0].data_ptr()


def test_fit_and_heldout_rows_share_no_group(graph: StageGraph, splits: Splits) -> None:
    features = collect_features(graph, ["a"], splits.fit, Quiet())["a"]
    fit, heldout = split_features(features, 0.25)
    assert not set(features.groups[fit].tolist()) & set(features.groups[heldout].tolist())
    assert len(fit) + len(heldout) == len(splits.fit)


@pytest.mark.parametrize(("n", "heldout"), [(2, 0.9), (2, 0.01), (3, 0.99), (9, 0.5)])
def test_some_samples_are_fitted_to_and_some_are_held_out_whatever_the_share(graph: StageGraph, splits: Splits, n: int, heldout: float) -> None:
    features = collect_features(graph, ["a"], splits.fit, Quiet())["a"]
    for groups in (torch.arange(n), torch.zeros(n, dtype=torch.int64)):
        fit, out = split_features(replace(features, groups=groups), heldout)
        assert len(fit) > 0
        assert len(out) > 0
        assert sorted([*fit.tolist(), *out.tolist()]) == list(range(n))


def test_a_single_sample_to_fit_to_is_refused(graph: StageGraph, splits: Splits) -> None:
    features = collect_features(graph, ["a"], splits.fit, Quiet())["a"]
    with pytest.raises(InputError, match=r"set 'fit' must have at least 2 samples, .* got 1"):
        split_features(replace(features, groups=torch.zeros(1, dtype=torch.int64)))


def test_calibration_lowers_the_heldout_error_of_every_output(graph: StageGraph, splits: Splits) -> None:
    features = collect_features(graph, ["b"], splits.fit, Quiet())["b"]
    torch.manual_seed(1)
    block = Down(8)
    _, heldout = split_features(features)
    before = held_out_errors(block, features, heldout)
    errors, steps = calibrate_block(block, features, replace(FAST, max_steps=200))
    assert steps > 0
    assert set(errors) == {"h", "other"}
    assert all(errors[name] < 0.5 * float(old.detach()) for name, old in zip(("h", "other"), before, strict=True))


def test_the_teachers_own_block_has_no_error_and_is_left_alone(graph: StageGraph, splits: Splits) -> None:
    features = collect_features(graph, ["b"], splits.fit, Quiet())["b"]
    block = Down(16)
    block.load_state_dict(graph["b"].module.state_dict())
    errors, _ = calibrate_block(block, features, FAST)
    assert max(errors.values()) < 1e-10
    assert all(torch.equal(value, graph["b"].module.state_dict()[name]) for name, value in block.state_dict().items())


def test_a_second_run_calibrates_nothing_and_gives_the_same_blocks(calibrator: Calibrator, stages: tuple[Stage, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    first = calibrator.run(stages, Quiet())
    assert len(first) == 6
    assert calibrator.missing(stages) == []
    monkeypatch.setattr(module, "calibrate_block", lambda *_: pytest.fail("calibrated again"))
    second = calibrator.run(stages, Quiet())
    for key, block in first.items():
        for name, value in block.module.state_dict().items():
            assert torch.equal(value, second[key].module.state_dict()[name])


def test_a_store_that_cannot_be_written_is_refused_before_the_teacher_runs(
    calibrator: Calibrator, stages: tuple[Stage, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FeatureBank", lambda *_: pytest.fail("the teacher ran"))
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot write to .*blocks: .* not a writable folder; set NAS_HOME"):
        replace(calibrator, store=BlockStore(tmp_path / "file" / "blocks")).run(stages, Quiet())


@pytest.mark.parametrize("change", ["teacher", "data", "settings", "stage", "recipe"])
def test_the_key_of_a_block_follows_everything_that_decides_it(calibrator: Calibrator, splits: Splits, stages: tuple[Stage, ...], change: str) -> None:
    stage, choice = stages[0], stages[0].choices[1]
    key = calibrator.key(stage, choice)
    assert key == replace(calibrator).key(stage, choice)
    changed = {
        "teacher": (replace(calibrator, teacher_key="other"), stage, choice),
        "data": (replace(calibrator, samples=splits.measure), stage, choice),
        "settings": (replace(calibrator, settings=replace(FAST, lr=1e-3)), stage, choice),
        "stage": (calibrator, stages[1], choice),
        "recipe": (calibrator, stage, stage.choices[2]),
    }[change]
    assert changed[0].key(*changed[1:]) != key


def test_a_damaged_block_is_calibrated_again_with_a_note(calibrator: Calibrator, stages: tuple[Stage, ...]) -> None:
    first = calibrator.run(stages[:1], Quiet())
    key = calibrator.key(stages[0], stages[0].choices[1])
    path = calibrator.store.root / key[:2] / key / "block.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    notes: list[str] = []

    class Listener(Quiet):
        def note(self, text: str) -> None:
            notes.append(text)

    again = calibrator.run(stages[:1], Listener())
    assert any("is damaged" in note and "calibrating it again" in note for note in notes)
    for name, value in first["a", "half"].module.state_dict().items():
        assert torch.equal(value, again["a", "half"].module.state_dict()[name])


def test_a_block_with_other_tensors_is_named_and_calibrated_again(calibrator: Calibrator, stages: tuple[Stage, ...]) -> None:
    calibrator.run(stages[:1], Quiet())
    key = calibrator.key(stages[0], stages[0].choices[1])
    record, weights = calibrator.store.record(key), calibrator.store.weights(key)
    calibrator.store.drop(key)
    wrong = {**weights, "layers.0.weight": torch.ones(3), "extra": torch.ones(1), "layers.2.bias": weights["layers.2.bias"].double()}
    del wrong["layers.0.bias"]
    calibrator.store.put(key, record, wrong)
    notes: list[str] = []

    class Listener(Quiet):
        def note(self, text: str) -> None:
            notes.append(text)

    blocks = calibrator.run(stages[:1], Listener())
    (note,) = [note for note in notes if "calibrating it again" in note]
    assert "'extra' must be nothing, got (1,) float32; 'layers.0.bias' must be (8,) float32, got nothing" in note
    assert "and 1 more" in note
    assert all(torch.equal(blocks["a", "half"].module.state_dict()[name], value) for name, value in weights.items())


class _Poisoned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Down(4)

    def forward(self, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        written = self.inner(h)
        return written[0] / torch.zeros(()), written[1]


@dataclass(frozen=True)
class _Poison:
    @property
    def spec(self) -> dict[str, Any]:
        return {"recipe": "poison"}

    def build(self, teacher: nn.Module) -> nn.Module:
        del teacher
        return _Poisoned()


def test_a_block_that_diverges_is_left_out_with_its_reason_and_the_others_go_on(calibrator: Calibrator) -> None:
    stage = Stage("b", (Choice("teacher"), Choice("poison", _Poison()), Choice("half", Narrow(8))))
    notes: list[str] = []

    class Listener(Quiet):
        def note(self, text: str) -> None:
            notes.append(text)

    blocks = calibrator.run((stage,), Listener())
    assert list(blocks) == [("b", "half")]
    assert any("block 'b/poison' is left out" in note and "at step 0, lr" in note for note in notes)


def test_errors_are_zero_for_the_teacher_and_nan_where_there_is_no_choice(calibrator: Calibrator, stages: tuple[Stage, ...]) -> None:
    uneven = (stages[0], Stage("b", stages[1].choices[:2]))
    table = calibration_errors(uneven, calibrator.run(uneven, Quiet()))
    assert table[:, 0].tolist() == [0.0, 0.0]
    assert np.isnan(table[1, 2])
    assert (table[0, 1:] > 0).all()


def test_the_curve_of_a_calibration_is_kept_with_the_block(calibrator: Calibrator, stages: tuple[Stage, ...]) -> None:
    (block, *_) = calibrator.run(stages, Quiet()).values()
    steps, errors = zip(*block.record.curve, strict=True)
    assert steps[0] == 0
    assert list(steps) == sorted(steps)
    assert steps[-1] == block.record.steps
    assert errors[-1] == pytest.approx(block.record.error)
    assert errors[-1] <= errors[0]
    assert calibrator.store.record(block.key).curve == block.record.curve
