"""A surrogate block of one's own, registered and proven: a gated layer in place of a wide feed-forward one, on a network for noisy signals.

    python examples/04_own_block.py
    nas search --space examples/04_own_block.py:make_space --eps 0.01

Measured on 2026-11-22 at eps 0.01: 2.7 times fewer parameters, L 0.95 % of the output's variance: gated-64 in all four places; 8 seconds of processor time.
"""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import nas
from nas.batches import collect, split
from nas.blocks.calibration import CalibrationSettings
from nas.blocks.recipe import BlockRecipe, block
from nas.blocks.reductions.depth import Bypass
from nas.blocks.suite import check_recipe
from nas.spaces.model import model_space
from nas.spaces.network import NetworkSpace

WIDTH = 32


class Wide(nn.Module):
    """The network's own block: `h (B, 32) -> h (B, 32)`."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 256), nn.GELU(), nn.Linear(256, WIDTH))

    def forward(self, h: Tensor) -> Tensor:
        return h + self.layers(h)


class Gated(nn.Module):
    """The surrogate block: the product of two narrow projections, led back."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        self.value, self.gate, self.back = nn.Linear(WIDTH, inner), nn.Linear(WIDTH, inner), nn.Linear(inner, WIDTH)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.back(self.value(h) * self.gate(h).sigmoid())


@block("gated", fits="blocks that read and write (B, 32)", does="a gated layer of another inner width")
@dataclass(frozen=True)
class GatedRecipe(BlockRecipe):
    """The fields are the recipe's spec: part of the block's key in the store and of exported models."""

    inner: int = 32

    def build(self, teacher: nn.Module) -> nn.Module:
        weight = next(teacher.parameters())
        return Gated(self.inner).to(weight.device, weight.dtype)


def signals(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noisy sums of two sines at 32 points `(n, 32)`, and the same without noise."""
    random = torch.Generator().manual_seed(seed)
    frequency, phase = torch.rand(2, n, 2, 1, generator=random) * 6
    clean = (frequency * torch.linspace(0, 3, WIDTH) + phase).sin().sum(1)
    return clean + 0.5 * torch.randn(n, WIDTH, generator=random), clean


@functools.cache
def train_teacher() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(*(Wide() for _ in range(4)))
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for seed in range(500):
        noisy, clean = signals(128, seed)
        optimizer.zero_grad()
        nn.functional.mse_loss(model(noisy), clean).backward()
        optimizer.step()
    return model.eval()


def make_space() -> NetworkSpace:
    """Four stages, found by their positions in the Sequential."""
    data = split(collect(signals(256, 10_000 + seed)[:1] for seed in range(4)))
    recipes = [GatedRecipe(64), GatedRecipe(32), GatedRecipe(8), Bypass()]
    return model_space("signals", train_teacher(), ["0", "1", "2", "3"], data, recipes, calibration=CalibrationSettings(max_steps=200))


def main() -> dict[str, float]:
    check_recipe(GatedRecipe(8), Wide(), torch.randn(2, WIDTH))  # the contract of blocks, in one line
    result = nas.search(make_space(), 0.01, trials=25).to_json()
    winner = result["winners"][0]
    return {"smaller": result["teacher"]["params"] / winner["params"], "relative divergence": winner["relative_divergence"], **winner["candidate"]}


if __name__ == "__main__":
    print(main())
