"""Blocks that wait elsewhere; here a layout of memory stands for a device, which is the same to everything but the copy."""

from collections.abc import Sequence

import pytest
import torch
from torch import nn

from nas.evaluators.numerics import Numerics
from nas.evaluators.resident import ResidentModules

KB = 1024


def conv(seed: int) -> nn.Conv2d:
    torch.manual_seed(seed)
    return nn.Conv2d(16, 16, 2, bias=False)  # 4 kB


def fetched(resident: ResidentModules, modules: Sequence[nn.Module]) -> list[int]:
    return [id(module) for module in resident.fetch(modules)]


def test_modules_that_are_there_are_called_themselves() -> None:
    resident, layers = ResidentModules(torch.device("cpu")), [conv(0), conv(1)]
    assert resident.fetch(layers) == layers
    assert resident.nbytes == 0


def test_copies_unused_for_longest_leave_first() -> None:
    resident = ResidentModules(None, Numerics(channels_last=True).module, budget=8 * KB)
    a, b, c = conv(0), conv(1), conv(2)
    first = fetched(resident, [a, b])
    assert resident.nbytes == 8 * KB
    assert fetched(resident, [b, a]) == first[::-1]
    third = fetched(resident, [c])
    assert resident.nbytes == 8 * KB
    assert fetched(resident, [a, c]) == [first[0], third[0]]  # b had to go


def test_what_is_needed_at_once_stays_together_beyond_the_budget() -> None:
    resident = ResidentModules(None, Numerics(channels_last=True).module, budget=4 * KB)
    layers = [conv(k) for k in range(3)]
    called = resident.fetch(layers)
    assert resident.nbytes == 12 * KB
    assert fetched(resident, layers) == [id(module) for module in called]
    resident.fetch(layers[:1])
    assert resident.nbytes == 4 * KB


@pytest.mark.parametrize("budget", [0, 1 << 30])
def test_copies_compute_the_same_and_leave_the_given_ones_alone(budget: int) -> None:
    layer = conv(0)
    kept = layer.weight.detach().clone()
    (called,) = ResidentModules(None, Numerics(channels_last=True).module, budget).fetch([layer])
    x = torch.randn(1, 16, 4, 4)
    torch.testing.assert_close(called(x), layer(x))
    assert torch.equal(layer.weight, kept)
    assert layer.weight.is_contiguous()


def test_a_module_elsewhere_is_copied_with_what_it_shares() -> None:
    shared = nn.Sequential(conv(0), nn.ReLU(), conv(1))
    shared[2].weight = shared[0].weight
    resident = ResidentModules(torch.device("meta"))
    (copied,) = resident.fetch([shared])
    assert copied[0].weight.is_meta  # type: ignore[index,union-attr]
    assert copied[0].weight is copied[2].weight  # type: ignore[index]
    assert not shared[0].weight.is_meta
    resident.clear()
    assert resident.nbytes == 0
