import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nas.blocks.offer import offer
from nas.blocks.recipe import BlockRecipe, block
from nas.blocks.reductions.depth import Bypass
from nas.blocks.reductions.low_rank import LowRank
from nas.blocks.reductions.widths import FeedForward
from nas.blocks.suite import check_library, check_recipe
from nas.cut import cut
from nas.data import Samples
from nas.errors import ContractError


class Wide(nn.Module):
    def __init__(self, inner: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, inner), nn.Linear(inner, 4)

    def forward(self, x: Tensor, scale: float = 1.0) -> tuple[Tensor, None]:
        return self.second(self.first(x).tanh()) * scale, None


TEACHER = Wide(16).eval()
X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


@block("suite-narrow", fits="Wide")
@dataclass(frozen=True)
class Narrow(BlockRecipe):
    inner: int
    fault: str = ""

    def build(self, teacher: nn.Module) -> nn.Module:
        device = next(teacher.parameters()).device
        made: Any = Wide(self.inner).to(device)
        if self.fault == "shape":
            made.second = nn.Linear(self.inner, 5, device=device)
        elif self.fault == "dtype":
            made = nn.Sequential(made, _Take(), _Double())
        elif self.fault == "structure":
            made = nn.Sequential(made, _Take(), _Nest())
        elif self.fault == "random":
            made.register_buffer("noise", torch.zeros(4))
            made.register_forward_hook(lambda module, args, out: (out[0] + torch.rand(4, device=out[0].device), None))
        elif self.fault == "seed":
            made.second.bias.data += torch.rand(4, generator=torch.Generator().manual_seed(time.monotonic_ns() % 2**31)).to(device)
            made.second.bias = nn.Parameter(made.second.bias.data, requires_grad=True)
            made.register_buffer("hidden", made.second.bias.data.clone(), persistent=False)
            made.register_forward_hook(lambda module, args, out: (out[0] + module.hidden, None))
        elif self.fault == "shares":
            made.second.bias = teacher.second.bias
        elif self.fault == "teacher":
            teacher.second.bias.data.add_(1.0)
        elif self.fault == "gradient":
            made.unused = nn.Parameter(torch.zeros(3, device=device))
        elif self.fault == "frozen":
            made.register_forward_hook(lambda module, args, out: (out[0].detach(), None))
        elif self.fault == "half":
            made.unused = nn.Parameter(torch.zeros(3, device=device, dtype=torch.float16))
        return made


class _Take(nn.Module):
    def forward(self, pair: tuple[Tensor, None]) -> Tensor:
        return pair[0]


class _Double(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return x.double(), None


class _Nest(nn.Module):
    def forward(self, x: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        return {"pair": (x, x)}


def test_a_third_partys_test_is_two_lines() -> None:
    made = check_recipe(Narrow(4), TEACHER, X, scale=2.0)
    assert isinstance(made, Wide)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("shape", r"block 'Wide/suite-narrow-4-shape' must write 'out0' as \(5, 4\) like the teacher, wrote \(5, 5\)"),
        ("dtype", "must write 'out0' as torch.float32 like the teacher, wrote torch.float64"),
        ("structure", r"must return \(Tensor, None\) like the teacher, returned \{'pair': \(Tensor, Tensor\)\}"),
        ("random", "equal inputs must give equal outputs"),
        ("seed", "equal seeds must make equal blocks"),
        ("shares", "shares parameter 'second.bias' with the teacher"),
        ("teacher", "build must leave the teacher alone"),
        ("gradient", "parameter 'unused' must get a finite gradient from the outputs, got none"),
        ("frozen", "parameter 'first.weight' must get a finite gradient from the outputs, got none"),
        ("half", "parameter 'unused' must be torch.float32 on cpu like the teacher's, is torch.float16 on cpu"),
    ],
)
def test_every_broken_promise_is_named(fault: str, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        check_recipe(Narrow(4, fault), Wide(16).eval(), X)


def test_a_spec_that_is_no_json_is_refused() -> None:
    class Odd:
        spec = {"recipe": object()}  # noqa: RUF012

        def build(self, teacher: nn.Module) -> nn.Module:
            return Wide(4)

    with pytest.raises(ContractError, match="the spec must be JSON values"):
        check_recipe(Odd(), TEACHER, X)


def test_a_whole_library_is_proven_on_what_the_stages_really_read(home: Path) -> None:
    del home
    model = nn.Sequential(*(nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8)) for _ in range(3))).eval()
    samples = Samples({"x": torch.randn(4, 8)}, torch.arange(4))
    graph = cut(model, ["0", "1", "2"], samples)
    stages = offer(graph, [LowRank(0.5), FeedForward(0.5), Bypass()], samples.inputs).stages
    assert check_library(graph, stages, samples.inputs) == 9
