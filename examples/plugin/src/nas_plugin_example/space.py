"""A space: a small network that tells waves apart, trained when it is asked for."""

import torch
from torch import Tensor, nn

from nas.batches import collect, split
from nas.blocks.calibration import CalibrationSettings
from nas.blocks.reductions.low_rank import LowRank
from nas.spaces.model import model_space
from nas.spaces.network import NetworkSpace
from nas_plugin_example.block import Scale


class Layer(nn.Module):
    """`h (B, 16) -> h (B, 16)`."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 64), nn.Linear(64, 16)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.second(self.first(h).tanh())


def waves(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Sines at 16 points `(n, 16)` and their frequencies `(n, 1)`."""
    random = torch.Generator().manual_seed(seed)
    frequency = torch.rand(n, 1, generator=random) * 4 + 1
    return (frequency * torch.linspace(0, 2, 16) + torch.rand(n, 1, generator=random)).sin(), frequency


def make_space() -> NetworkSpace:
    """Three stages with three choices."""
    torch.manual_seed(0)
    model = nn.Sequential(Layer(), Layer(), Layer(), nn.Linear(16, 1))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for seed in range(200):
        x, y = waves(128, seed)
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
    data = split(collect([waves(512, 999)[:1]]))
    return model_space("waves", model.eval(), ["0", "1", "2"], data, [Scale(), LowRank(0.25)], calibration=CalibrationSettings(max_steps=100))
