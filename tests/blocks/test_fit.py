"""Fits of several blocks at once, and fits that are cut short: what comes out is what one undisturbed fit gives."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nas.blocks import calibration
from nas.blocks.calibration import Calibrator
from nas.blocks.features import StageFeatures, collect_features, split_features
from nas.blocks.fit import (
    CalibrationSettings,
    Diverged,
    Fit,
    _in_a_row,
    calibrate_block,
    differentiate,
    fit_together,
    held_out_errors,
    relative_errors,
)
from nas.blocks.flat import FlatAdam, FlatParameters
from nas.blocks.levels import errors_by_level
from nas.blocks.store import BlockStore
from nas.blocks.upkeep import leftovers
from nas.checkpoint import load_checkpoint, save_checkpoint
from nas.data import Splits
from nas.graph import StageGraph, Step
from nas.progress import Quiet
from nas.space import Stage
from tests.conftest import Down

SETTINGS = CalibrationSettings(max_steps=60, check_every=20)


@pytest.fixture
def features(graph: StageGraph, splits: Splits) -> StageFeatures:
    return collect_features(graph, ["b"], splits.fit, Quiet())["b"]


def block(hidden: int) -> Down:
    torch.manual_seed(hidden)
    return Down(hidden)


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def fit_of(module: nn.Module, features: StageFeatures) -> Fit:
    return Fit(module, features.step, features.output_variances, SETTINGS)


def test_blocks_fitted_together_are_those_fitted_alone_bit_for_bit(features: StageFeatures) -> None:
    together = [block(hidden) for hidden in (2, 4, 8)]
    ended = [fit for fit, over in fit_together([fit_of(b, features) for b in together], features, SETTINGS) if over]
    assert len(ended) == 3
    for b in together:
        alone = block(b.layers[0].out_features)  # type: ignore[arg-type]
        calibrate_block(alone, features, SETTINGS)
        assert same(alone, b)


def test_a_batch_is_read_once_for_all_blocks(features: StageFeatures, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    batch = StageFeatures.batch
    monkeypatch.setattr(StageFeatures, "batch", lambda self, rows: (reads.append(len(rows)), batch(self, rows))[1])
    settings = CalibrationSettings(max_steps=40, check_every=20, finish=False, patience=9)
    for _ in fit_together([fit_of(block(hidden), features) for hidden in (2, 4)], features, settings):
        pass
    assert reads.count(settings.batch_size) == 40 + 20  # the fits' own settings say 60 steps


def test_batches_in_a_row_are_those_drawn_and_take_no_more_room_than_allowed(features: StageFeatures, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = list(torch.arange(7 * 4).remainder(5).view(7, 4))
    size = sum(value.nbytes for part in features.batch(drawn[0]) for value in part)
    for room, counts in ((0, [1] * 7), (3 * size, [3, 3, 1]), (100 * size, [7])):
        monkeypatch.setattr("nas.blocks.fit.IN_A_ROW", room)
        rows = list(_in_a_row(features, drawn))
        assert [len(batches) for batches in rows] == counts
        read = torch.cat([reads[0] for batches in rows for reads, _ in batches])
        assert torch.equal(read, features.batch(torch.cat(drawn))[0][0])


class Passing(nn.Module):
    """Writes a linear map of what it reads, and what it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(5, 5)

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.map(h), h, self.map(h).square()


def test_gradients_are_those_of_the_mean_of_the_relative_errors() -> None:
    step, variances = Step("s", ("h",), ("a", "b", "c"), nn.Identity()), (0.5, 1.0, 0.0)
    torch.manual_seed(0)
    batch = (torch.randn(8, 5),), tuple(torch.randn(3, 8, 5))
    one = Passing()
    other = copy.deepcopy(one)
    differentiate(one, step, variances, batch)
    relative_errors(other, step, variances, batch).mean().backward()  # type: ignore[no-untyped-call]
    for mine, usual in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, usual.grad)


def test_a_block_that_diverges_leaves_the_others_alone(features: StageFeatures) -> None:
    broken, fine, alone = block(4), block(8), block(8)
    with torch.no_grad():
        next(broken.parameters()).fill_(torch.nan)
    found = {fit.block: fit for fit, over in fit_together([fit_of(broken, features), fit_of(fine, features)], features, SETTINGS) if over}
    assert found[broken].failure.startswith("the loss's gradient became nan at step 0, lr")
    assert not found[fine].failure
    calibrate_block(alone, features, SETTINGS)
    assert same(fine, alone)
    with pytest.raises(Diverged, match="at step 0"):
        calibrate_block(broken, features, SETTINGS)


def test_a_block_that_does_not_get_better_stays_as_it_was(features: StageFeatures) -> None:
    teacher = Down(16)
    teacher.load_state_dict(features.step.module.state_dict())
    errors, steps = calibrate_block(teacher, features, CalibrationSettings(max_steps=60, check_every=20, patience=1, finish=False))
    assert steps == 20
    assert same(teacher, features.step.module)
    assert sum(errors.values()) == 0


@pytest.mark.parametrize("most", [1, 50, 60])
def test_a_fit_takes_no_more_steps_than_it_may(features: StageFeatures, most: int) -> None:
    settings = CalibrationSettings(max_steps=most, check_every=20, patience=99, finish=False)
    fit = Fit(block(8), features.step, features.output_variances, settings)
    for _ in fit_together([fit], features, settings):
        pass
    assert fit.steps == most
    assert [steps for steps, _ in fit.curve] == [*range(0, most, 20), most, most]


@pytest.mark.parametrize("looks", [1, 2])
def test_a_fit_goes_on_from_its_saved_state_to_the_same_bits(features: StageFeatures, tmp_path: Path, looks: int) -> None:
    whole, cut, other = block(8), block(8), block(3)
    calibrate_block(whole, features, SETTINGS)
    running = fit_together([fit_of(cut, features)], features, SETTINGS)
    for _ in range(looks):
        fit, _ = next(running)
    save_checkpoint(tmp_path / "fit", fit.state())
    resumed = fit_of(block(8), features)
    resumed.restore(load_checkpoint(tmp_path / "fit"))
    assert resumed.steps == 20 * looks
    list(fit_together([resumed, fit_of(other, features)], features, SETTINGS))  # beside one that is behind
    assert same(resumed.block, whole)


def test_all_blocks_are_looked_at_before_the_first_may_be_saved(features: StageFeatures) -> None:
    fits = [fit_of(block(hidden), features) for hidden in (2, 4)]
    for fit, over in fit_together(fits, features, SETTINGS):
        if not over:
            assert [len(one.curve) for one in fits] == [len(fit.curve)] * 2
            break


def test_a_killed_calibration_goes_on_inside_its_blocks(
    graph: StageGraph, splits: Splits, stages: tuple[Stage, ...], features: StageFeatures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "SAVE_S", 0.0)
    stage = stages[1]
    calibrator = Calibrator(graph, "toy", splits.fit, BlockStore(tmp_path / "cut"), SETTINGS)
    plain = Calibrator(graph, "toy", splits.fit, BlockStore(tmp_path / "whole"), SETTINGS)
    together = calibration.fit_together

    def killed(*arguments: Any) -> Iterator[Any]:
        for number, found in enumerate(together(*arguments)):
            if number == 3:
                raise KeyboardInterrupt
            yield found

    monkeypatch.setattr(calibration, "fit_together", killed)
    with pytest.raises(KeyboardInterrupt):
        list(calibrator.calibrate(stage, stage.choices[1:], features))
    assert len(list((tmp_path / "cut" / "unfinished").iterdir())) == 2
    steps: list[int] = []
    monkeypatch.setattr(calibration, "fit_together", lambda fits, *rest: (steps.extend(fit.steps for fit in fits), together(fits, *rest))[1])
    list(calibrator.calibrate(stage, stage.choices[1:], features))
    assert min(steps) >= 20
    assert list((tmp_path / "cut" / "unfinished").iterdir()) == []
    list(plain.calibrate(stage, stage.choices[1:], features))
    for choice in stage.choices[1:]:
        key = calibrator.key(stage, choice)
        one, other = calibrator.store.weights(key), plain.store.weights(key)
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_damaged_saved_state_costs_time_and_no_more(
    graph: StageGraph, splits: Splits, stages: tuple[Stage, ...], features: StageFeatures, tmp_path: Path
) -> None:
    calibrator = Calibrator(graph, "toy", splits.fit, BlockStore(tmp_path), SETTINGS)
    path = calibrator.store.unfinished(calibrator.key(stages[1], stages[1].choices[1]))
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no checkpoint")
    list(calibrator.calibrate(stages[1], stages[1].choices[1:2], features))
    assert calibrator.missing((Stage("b", stages[1].choices[:2]),)) == []
    assert leftovers(calibrator.store) == []


def test_flat_parameters_share_one_vector_and_are_given_back() -> None:
    net = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
    before = [p.detach().clone() for p in net.parameters()]
    flat = FlatParameters(list(net.parameters()))
    (vector,) = flat.vectors
    assert all(torch.equal(p, old) for p, old in zip(net.parameters(), before, strict=True))
    net(torch.ones(1, 3)).sum().backward()
    gradients = [p.grad for p in net.parameters() if p.grad is not None]
    assert vector.grad is not None
    assert float(vector.grad.abs().sum()) == pytest.approx(sum(float(g.abs().sum()) for g in gradients))
    with torch.no_grad():
        vector.add_(1.0)
    assert all(torch.equal(p, old + 1) for p, old in zip(net.parameters(), before, strict=True))
    flat.release()
    with torch.no_grad():
        vector.zero_()
    assert all(torch.equal(p, old + 1) for p, old in zip(net.parameters(), before, strict=True))
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("most", [0.1, 1e6])
def test_flat_parameters_go_the_way_of_clipping_and_adam(most: float) -> None:
    nets = [nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2).double()) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    flat = FlatParameters(list(nets[0].parameters()))
    assert len(flat.vectors) == 2
    mine, usual = FlatAdam(flat, most), torch.optim.Adam(nets[1].parameters(), lr=0.1)
    for step in range(5):
        flat.zero_grad()
        usual.zero_grad()
        for net in nets:
            net[1](net[0](torch.full((1, 3), step + 1.0)).double()).square().sum().backward()
        norm = nn.utils.clip_grad_norm_(nets[1].parameters(), most)
        torch.testing.assert_close(mine.step(mine.rate(0.1)), norm.float(), rtol=1e-5, atol=0)
        usual.step()
    for one, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_errors_by_level_average_to_the_error(features: StageFeatures) -> None:
    _, heldout = split_features(features)
    levels = torch.arange(len(features.groups)).flip(0)
    found = errors_by_level(block(4), features, heldout, levels)
    assert list(found) == ["0-31"]  # the last groups are held out, and the last have the least level here
    assert found["0-31"] == pytest.approx(float(held_out_errors(block(4), features, heldout).mean()), rel=1e-4)
    mixed = errors_by_level(block(4), features, heldout, torch.arange(len(features.groups)) % 4)
    assert list(mixed) == ["0-0", "1-1", "2-2", "3-3"]


def test_a_calibrator_keeps_errors_by_level(graph: StageGraph, splits: Splits, stages: tuple[Stage, ...], features: StageFeatures, tmp_path: Path) -> None:
    samples = type(splits.fit)({**splits.fit.inputs, "t": torch.arange(len(splits.fit)) % 100}, splits.fit.groups)
    calibrator = Calibrator(graph, "toy", samples, BlockStore(tmp_path), SETTINGS, levels="t")
    list(calibrator.calibrate(stages[1], stages[1].choices[1:2], features))
    record = calibrator.store.record(calibrator.key(stages[1], stages[1].choices[1]))
    assert all(error > 0 for error in record.by_level.values())
    assert record.by_level
