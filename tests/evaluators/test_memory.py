import torch
from torch import nn

from nas.evaluators.memory import peak_activation_mb, weight_mb


def test_weights_are_parameters_and_buffers_in_their_own_type() -> None:
    module = nn.Sequential(nn.Linear(10, 10, dtype=torch.float64), nn.BatchNorm1d(10))
    assert weight_mb(module) == (8 * 110 + 4 * (10 + 10 + 10 + 10) + 8) / 1e6


def test_the_peak_is_what_is_alive_at_once() -> None:
    x = torch.zeros(1000)

    def chain() -> torch.Tensor:
        y = x + 1
        y = y * 2  # two alive: the old and the new
        y = y - 3
        return y.view(10, 100)  # a view holds what is there

    assert peak_activation_mb(chain) == 2 * 4000 / 1e6


def test_views_of_what_was_there_take_nothing() -> None:
    x = torch.zeros(1000)
    assert peak_activation_mb(lambda: x.view(10, 100).T) == 0.0


def test_the_peak_on_the_meta_device_is_that_on_the_real_one() -> None:
    real = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64))
    meta = nn.Sequential(nn.Linear(64, 256, device="meta"), nn.GELU(), nn.Linear(256, 64, device="meta"))
    assert peak_activation_mb(lambda: real(torch.ones(8, 64))) >= peak_activation_mb(lambda: meta(torch.ones(8, 64, device="meta"))) > 0
