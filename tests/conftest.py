"""A small trained-like network with a skip, its recipes and data: what the tests of the core run on."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nas.data import Samples, Splits
from nas.graph import StageGraph, Step
from nas.space import Choice, Stage

torch.set_num_threads(1)  # tests run side by side; small tensors gain nothing from more
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the same for the processes that tests start

WIDTH = 8


class Down(nn.Module):
    """`h -> (h, skip)`."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(WIDTH, hidden), nn.Tanh(), nn.Linear(hidden, WIDTH))

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        h = self.layers(h)
        return h, h * 0.5


class Up(nn.Module):
    """`(h, skip) -> h`."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2 * WIDTH, hidden), nn.Tanh(), nn.Linear(hidden, WIDTH))

    def forward(self, h: Tensor, skip: Tensor) -> Tensor:
        result: Tensor = self.layers(torch.cat([h, skip], -1))
        return result


@dataclass(frozen=True)
class Narrow:
    """The teacher's block with another hidden width."""

    hidden: int

    @property
    def spec(self) -> dict[str, Any]:
        return {"recipe": "narrow", "hidden": self.hidden}

    def build(self, teacher: nn.Module) -> nn.Module:
        device = next(teacher.parameters()).device
        return type(teacher)(self.hidden).to(device)


def toy_graph() -> StageGraph:
    """Stem -> a (h, skip) -> b (h, other) -> c(h, skip) -> out."""
    torch.manual_seed(0)
    steps = (
        Step("stem", ("x",), ("h",), nn.Linear(4, WIDTH)),
        Step("a", ("h",), ("h", "skip"), Down(16)),
        Step("b", ("h",), ("h", "other"), Down(16)),
        Step("c", ("h", "skip"), ("h",), Up(16)),
        Step("out", ("h", "other"), ("y",), Up(12)),
    )
    for step in steps:
        step.module.eval()
    return StageGraph(("x",), steps, "y")


def toy_stages() -> tuple[Stage, ...]:
    choices = (Choice("teacher"), Choice("half", Narrow(8)), Choice("tiny", Narrow(2)))
    return tuple(Stage(name, choices) for name in "abc")


def toy_samples(n: int, seed: int, first_group: int = 0) -> Samples:
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))
    return Samples({"x": x}, first_group + torch.arange(n) // 2)


@pytest.fixture
def graph() -> StageGraph:
    return toy_graph()


@pytest.fixture
def stages() -> tuple[Stage, ...]:
    return toy_stages()


@pytest.fixture
def splits() -> Splits:
    return Splits(toy_samples(128, 1), toy_samples(128, 2, 1000), toy_samples(128, 3, 2000))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty `$NAS_HOME`."""
    monkeypatch.setenv("NAS_HOME", str(tmp_path / "home"))
    return tmp_path / "home"
