"""A block library of one's own: a small residual network on two spirals, with two kinds of surrogate block.

nas search --space examples/own_library.py:make_space --eps 0.5
nas spaces show examples/own_library.py:make_space
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nas.data import Samples, Splits
from nas.graph import StageGraph, Step
from nas.space import Choice, Stage
from nas.spaces import NetworkSpace

WIDTH = 32


class Block(nn.Module):
    """`h (B, 32) -> h (B, 32)`: a residual layer of any inner width."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(WIDTH, inner), nn.SiLU(), nn.Linear(inner, WIDTH))

    def forward(self, h: Tensor) -> Tensor:
        result: Tensor = h + self.layers(h)
        return result


@dataclass(frozen=True)
class Narrow:
    """A recipe: the teacher's block with another inner width, started from the teacher's first units."""

    inner: int

    @property
    def spec(self) -> dict[str, Any]:
        return {"recipe": "narrow", "inner": self.inner}

    def build(self, teacher: nn.Module) -> nn.Module:
        block = Block(self.inner).to(next(teacher.parameters()).device)
        weights = {name: value.clone() for name, value in teacher.state_dict().items()}
        for name in ("layers.0.weight", "layers.0.bias"):
            weights[name] = weights[name][: self.inner]
        weights["layers.2.weight"] = weights["layers.2.weight"][:, : self.inner]
        block.load_state_dict(weights)
        return block


@dataclass(frozen=True)
class Bypass:
    """A recipe: no block at all."""

    @property
    def spec(self) -> dict[str, Any]:
        return {"recipe": "bypass"}

    def build(self, teacher: nn.Module) -> nn.Module:
        del teacher
        return nn.Identity()


def spirals(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Points `(n, 2)` on two interleaved spirals and their class `(n,)`."""
    random = torch.Generator().manual_seed(seed)
    label = torch.arange(n) % 2
    radius = torch.rand(n, generator=random) * 3 + 0.3
    angle = 2 * radius + torch.pi * label
    points = torch.stack([radius * angle.cos(), radius * angle.sin()], 1)
    return points + 0.05 * torch.randn(n, 2, generator=random), label


def train_teacher() -> nn.Sequential:
    """The network to compress; a few seconds."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, WIDTH), *(Block(128) for _ in range(4)), nn.Linear(WIDTH, 2))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    points, label = spirals(2000, 0)
    for _ in range(400):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(points), label).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model.eval()


def make_space() -> NetworkSpace:
    """Four residual stages with four choices each: 256 candidates; divergence is the mean squared difference of the logits."""
    model = train_teacher()
    names = ("stem", "first", "second", "third", "fourth", "head")
    graph = StageGraph(("x",), tuple(Step(name, ("x",) if name == "stem" else ("h",), ("h",), m) for name, m in zip(names, model, strict=True)), "h")
    choices = (Choice("teacher"), Choice("half", Narrow(64)), Choice("eighth", Narrow(16)), Choice("bypass", Bypass()))
    stages = tuple(Stage(name, choices) for name in names[1:5])
    parts = [spirals(512, seed)[0] for seed in (1, 2, 3)]
    return NetworkSpace("spirals", graph, stages, Splits(*(Samples({"x": x}, torch.arange(512) + 512 * i) for i, x in enumerate(parts))))
