"""The closed-form finish: it finds the maps that outputs end in, solves them exactly, and never makes a block worse."""

import copy

import pytest
import torch
from torch import Tensor, nn

from nas.blocks.calibration import CalibrationSettings, calibrate_block
from nas.blocks.features import StageFeatures, split_features
from nas.blocks.fit import held_out_errors
from nas.blocks.ridge import _ends, solve_ends
from nas.graph import Step


class Residual(nn.Module):
    """`shortcut(h) + second(relu(first(h)))`, and the same once more through a nonlinearity."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.shortcut = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 4, 3, padding=1), nn.Conv2d(4, 4, 1, bias=False)
        self.after = nn.Conv2d(4, 4, 1)

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        skip = self.shortcut(h) + self.second(self.first(h).relu())
        return skip, self.after(skip.relu())


def features_of(teacher: nn.Module, *shape: int, writes: tuple[str, ...] = ("h",)) -> StageFeatures:
    reads = torch.randn(120, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        written = teacher(reads)
    outputs = written if isinstance(written, tuple) else (written,)
    return StageFeatures(Step("s", ("h",), writes, teacher), (reads,), outputs, torch.arange(120))


def solved(block: nn.Module, features: StageFeatures) -> tuple[int, float, float]:
    """How many maps changed, and the held-out error before and after."""
    fit, heldout = split_features(features)

    def error() -> Tensor:
        return held_out_errors(block, features, heldout)

    with torch.no_grad():
        before = error()
        changed, after = solve_ends(block, features, fit, heldout, before, error)
        assert torch.equal(after, error())
        return changed, float(before.mean()), float(after.mean())


def made(seed: int, make: type[nn.Module] | None = None) -> nn.Module:
    torch.manual_seed(seed)
    return (make or Residual)().eval()


def test_ends_are_the_maps_whose_results_are_added_to_an_output() -> None:
    features = features_of(made(0), 4, 6, 6, writes=("skip", "h"))
    assert _ends(made(1), features, torch.arange(2)) == [("shortcut", 0), ("second", 0), ("after", 1)]


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: nn.Conv2d(4, 5, 3, padding=1), (4, 6, 6)),
        (lambda: nn.Conv2d(4, 5, 3, stride=2, padding=1, bias=False), (4, 7, 7)),
        (lambda: nn.Conv2d(4, 5, 2, dilation=2), (4, 6, 6)),
        (lambda: nn.Linear(6, 3), (5, 6)),
    ],
    ids=["convolution", "stride", "dilation", "linear"],
)
def test_a_map_that_can_be_met_is_met_in_one_solution(make: type[nn.Module], shape: tuple[int, ...]) -> None:
    changed, before, after = solved(made(1, make), features_of(made(0, make), *shape))
    assert changed == 1
    assert before > 1
    assert after < 1e-6


def test_what_makes_the_whole_block_worse_is_taken_back() -> None:
    """The skip is met exactly by its first maps already; solving them for anything else would cost what stands on it."""
    teacher = made(0)
    block = copy.deepcopy(teacher)
    with torch.no_grad():
        assert isinstance(block, Residual)
        block.second.weight.add_(0.02 * torch.randn(block.second.weight.shape, generator=torch.Generator().manual_seed(3)))
    _, before, after = solved(block, features_of(teacher, 4, 6, 6, writes=("skip", "h")))
    assert after < 0.05 * before


def test_ends_of_one_output_are_solved_together() -> None:
    """One after the other, the first would take over what the second lacks as far as it can."""
    teacher = made(0)
    block = copy.deepcopy(teacher)
    assert isinstance(block, Residual)
    with torch.no_grad():
        for parameter in (block.second.weight, block.second.bias, block.shortcut.weight):
            assert parameter is not None
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    changed, before, after = solved(block, features_of(teacher, 4, 6, 6, writes=("skip", "h")))
    assert changed >= 2
    assert before > 1e-3
    assert after < 1e-7


@pytest.mark.parametrize("seed", range(5))
def test_a_block_never_gets_worse(seed: int) -> None:
    _, before, after = solved(made(seed + 1), features_of(made(0), 4, 6, 6, writes=("skip", "h")))
    assert after <= before


def test_frozen_maps_and_maps_with_groups_stay_as_they_are() -> None:
    frozen = nn.Conv2d(4, 4, 3, padding=1).requires_grad_(False)
    grouped = nn.Conv2d(4, 4, 3, padding=1, groups=4)
    for block in (frozen, grouped):
        kept = copy.deepcopy(block.state_dict())
        assert solved(block, features_of(made(0, lambda: nn.Conv2d(4, 4, 3, padding=1)), 4, 6, 6))[0] == 0  # type: ignore[arg-type, return-value]
        assert all(torch.equal(kept[name], value) for name, value in block.state_dict().items())


def test_a_finished_fit_is_better_than_one_that_is_not() -> None:
    features = features_of(made(0), 4, 6, 6, writes=("skip", "h"))
    errors = {finish: sum(calibrate_block(made(1), features, CalibrationSettings(max_steps=50, finish=finish))[0].values()) for finish in (False, True)}
    assert errors[True] < 0.9 * errors[False]
