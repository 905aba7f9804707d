"""A metric, a cost and rules of one's own: the labels decide what counts, memory is bounded, neighbours may not both be cut to the bone.

    python examples/06_own_metric_and_bounds.py

Measured on 2026-11-22: the right class loses 0.13 % probability (0.19 % held out), with 7.5 kB of weights (of 28.7) and 3,576 multiply-adds (of
13,944): every stage keeps a quarter of its hidden units.
"""

import functools
from collections.abc import Mapping

import torch
from torch import Tensor, nn

import nas
from nas.batches import collect, split
from nas.blocks.calibration import CalibrationSettings
from nas.blocks.reductions.depth import Bypass
from nas.blocks.reductions.low_rank import LowRank
from nas.blocks.reductions.widths import FeedForward
from nas.spaces.model import model_space
from nas.spaces.network import NetworkSpace


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(24, 96), nn.Linear(96, 24)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.second(self.first(h).relu())


def rings(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Points `(n, 2)` and which of three wavy rings they lie on."""
    random = torch.Generator().manual_seed(seed)
    label = torch.randint(3, (n,), generator=random)
    angle = torch.rand(n, generator=random) * 2 * torch.pi
    radius = 1 + label + 0.4 * (5 * angle).sin() + 0.1 * torch.randn(n, generator=random)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1), label


@functools.cache
def train_teacher() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 24), Layer(), Layer(), Layer(), nn.Linear(24, 3))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for seed in range(500):
        point, label = rings(128, seed)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(point), label).backward()
        optimizer.step()
    return model.eval()


def lost_probability(teacher: Tensor, candidate: Tensor, target: Tensor) -> Tensor:
    """How much less probability the right class gets than from the teacher, `(B,)`: any function of outputs (and target) will do."""
    before, after = (logits.softmax(1).gather(1, target[:, None])[:, 0] for logits in (teacher, candidate))
    return (before - after).clamp(min=0)


def kilobytes(block: nn.Module) -> float:
    """Memory of the weights at 16 bits: any number of a module, as long as a network's is the sum of its blocks'."""
    return sum(parameter.numel() for parameter in block.parameters()) * 2 / 1000


def not_all_bypassed(names: Mapping[str, str]) -> bool:
    """A rule: at least two stages keep a block."""
    return sum(choice == "bypass" for choice in names.values()) <= 1


def make_space() -> NetworkSpace:
    data = split(collect((rings(256, 10_000 + seed) for seed in range(4)), ("x", "label"), target="label"))
    return model_space(
        "rings", train_teacher(), {"one": "1", "two": "2", "three": "3"}, data, [FeedForward(0.5), FeedForward(0.25), LowRank(0.25), Bypass()],
        divergence=lost_probability, costs={"kilobytes": kilobytes}, rules=[not_all_bypassed], calibration=CalibrationSettings(max_steps=200),
    )  # fmt: skip


def main() -> dict[str, float]:
    result = nas.search(make_space(), 0.02, minimize="macs", where=("kilobytes<=60%",), trials=25).to_json()
    winner = result["winners"][0]
    return {
        "lost probability": winner["divergence"], "held out": winner["heldout_divergence"], "kilobytes": winner["kilobytes"],
        "of the teacher's": result["teacher"]["kilobytes"], "macs": winner["macs"], "teacher's macs": result["teacher"]["macs"], **winner["candidate"],
    }  # fmt: skip


if __name__ == "__main__":
    print(main())
