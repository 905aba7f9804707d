"""A model of one's own as a space: from its modules' names to a winner that is loaded back."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nas
from nas.batches import collect, split
from nas.blocks.calibration import CalibrationSettings
from nas.blocks.reductions.convolutions import Separable
from nas.blocks.reductions.depth import Bypass
from nas.blocks.reductions.low_rank import LowRank
from nas.blocks.reductions.widths import Channels, FeedForward
from nas.blocks.saved import load_model
from nas.errors import InputError, NasError, UserCodeError
from nas.evaluators.divergences import kl_divergence
from nas.progress import Quiet
from nas.spaces.model import model_space
from nas.spaces.network import NetworkSpace
from nas.spaces.rules import Forbid
from tests.core.test_cli import nas as command


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 24), nn.Linear(24, 8)

    def forward(self, h: Tensor) -> Tensor:
        result: Tensor = h + self.second(self.first(h).relu())
        return result


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), Block(), Block(), nn.Linear(8, 3)).eval()


def unused_units(block: nn.Module) -> float:
    return float(sum(isinstance(part, nn.Linear) for part in block.modules()))


@pytest.fixture
def space(home: Path) -> NetworkSpace:
    x = torch.randn(256, 4, generator=torch.Generator().manual_seed(1))
    return model_space(
        "own", net(), {"low": "1", "high": "2"}, split(collect([x])), [FeedForward(0.5), FeedForward(0.25), Bypass()],
        divergence=kl_divergence, rules=[Forbid({"low": "bypass", "high": "bypass"})], costs={"layers": unused_units},
        calibration=CalibrationSettings(max_steps=50), home=home,
    )  # fmt: skip


def test_a_search_on_an_own_model_saves_a_winner_that_loads_to_the_bit(space: NetworkSpace, tmp_path: Path) -> None:
    result = nas.search(space, 1e9, workdir=tmp_path, trials=12)
    winner = result.to_json()["winners"][0]
    assert winner["feasible"]
    assert "bypass" in winner["candidate"].values()
    assert winner["candidate"] != {"low": "bypass", "high": "bypass"}
    assembled = space.prepare(Quiet())
    model = load_model(winner["path"], net())
    verify = space.data.verify.inputs["x"]
    divergence = kl_divergence(net()(verify), model(verify)).mean()
    assert float(divergence) == pytest.approx(winner["heldout_divergence"], rel=1e-5)
    assert sum(p.numel() for p in model.parameters()) == winner["params"]
    assert assembled.costs.of((0, 0))["layers"] == 4 + 2


class Up(nn.Module):
    """Reads what lies below and a long skip; its norm, registered last, is told by its inner width unless that is 8, what it reads."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(8, inner, 3, padding=1), nn.Conv1d(inner, 4, 3, padding=1)
        self.norm = nn.GroupNorm(4, inner)

    def forward(self, h: Tensor, skip: Tensor) -> Tensor:
        result: Tensor = self.second(self.norm(self.first(torch.cat([h, skip], 1))).relu())
        return result


class LongSkips(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = nn.Conv1d(1, 4, 3, padding=1), nn.Conv1d(4, 4, 3, padding=1)
        self.high, self.low = Up(16), Up(8)

    def forward(self, x: Tensor) -> Tensor:
        stem = self.stem(x)
        down = self.down(stem)
        result: Tensor = self.low(self.high(down, down), stem)
        return result


def test_stages_that_read_several_tensors_work_and_a_norm_that_cannot_be_placed_leaves_a_recipe_out(home: Path, tmp_path: Path) -> None:
    x = torch.randn(96, 1, 6, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    stages = {"high": "high", "low": "low"}
    own = model_space("skips", LongSkips().eval(), stages, split(collect([x])), [Channels(0.5)], calibration=CalibrationSettings(max_steps=5), home=home)
    assert [choice.name for choice in own.stages[0].choices] == ["teacher", "channels-0.5"]
    assert "Expected weight to be a vector of size" in own.left_out["low"]["channels-0.5"]
    winner = nas.search(own, 1e9, workdir=tmp_path, trials=3).to_json()["winners"][0]
    small = load_model(winner["path"], LongSkips())
    assert winner["candidate"]["high"] == "channels-0.5"
    assert sum(p.numel() for p in small.parameters()) == winner["params"]


def test_the_search_calibrates_nothing_twice_and_measures_the_same(space: NetworkSpace) -> None:
    first = space.prepare(Quiet()).evaluator.measure([(1, 2)])[0]
    again = replace(space).prepare(Quiet()).evaluator.measure([(1, 2)])[0]
    assert again.cached
    assert again.divergence == first.divergence


def test_costs_of_candidates_are_those_of_the_assembled_model(space: NetworkSpace) -> None:
    costs = space.costs()
    assert costs.of((0, 0))["params"] == sum(p.numel() for p in net().parameters())
    assert costs.of((0, 0))["macs"] == 4 * 8 + 2 * (2 * 8 * 24) + 8 * 3
    assert costs.of((3, 0))["macs"] == 4 * 8 + 2 * 8 * 24 + 8 * 3


def test_bounds_hold_on_costs_of_ones_own(space: NetworkSpace) -> None:
    result = nas.search(space, 1e9, workdir=None, trials=12, where=("layers<=4",), minimize="macs")
    assert result.to_json()["winners"][0]["layers"] <= 4


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Forbid({"mid": "bypass"}), "a rule names stage 'mid', which the space lacks"),
        (Forbid({"low": "bypas"}), "a rule names choice 'bypas' of stage 'low'.* did you mean 'bypass'"),
        (lambda names: names["low"] != "teacher", "a rule forbids the teacher itself"),
    ],
)
def test_rules_that_cannot_be_meant_are_refused(space: NetworkSpace, rule: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        _ = replace(space, rules=(rule,)).space  # type: ignore[arg-type]


def test_a_space_prints_itself_on_one_line(space: NetworkSpace) -> None:
    assert repr(space) == "NetworkSpace('own', choices {low: 4, high: 4}, 16 candidates)"


class Sum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        result: Tensor = self.high(self.low(x).relu()) * sigma
        return result


def own(inputs: tuple[str, ...] = ("x", "sigma"), **more: Any) -> NetworkSpace:
    data = split(collect([(torch.randn(32, 4), torch.ones(32, 1))], inputs=inputs))
    return model_space("sum", Sum().eval(), {"low": "low", "high": "high"}, **({"data": data, "recipes": [LowRank(0.3)]} | more))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: own(inputs=("signal", "sigma")), "the model's forward has no 'signal'; .*name inputs as forward does, or give call="),
        (lambda: own(inputs=("sigma", "x")), r"running the model on its samples: RuntimeError: .*test_model_space.py:\d+\); look at the names, order"),
        (lambda: own(costs={"macs": unused_units}), "cost 'macs' is counted already; give yours another name"),
        (lambda: own(costs={"layers": 3}), "cost 'layers' must be a function, got 3"),
        (lambda: own(costs={"layers": lambda block: block.layers}).costs(), r"cost 'layers' at step 'low': AttributeError: .*test_model_space.py:\d+\)"),
        (lambda: own(costs={"layers": lambda block: None}).costs(), "cost 'layers' must be a finite number of a module, got None at step 'low'"),
        (lambda: own(rules=[lambda names: names["mid"] == "x"]).space, r"a rule on {'low': 'teacher', .*}: KeyError: 'mid' \(.*test_model_space.py:\d+\)"),
        (lambda: own(output="logits"), "the model returns one tensor, which has no part 'logits'; leave output= out"),
        (lambda: own(data=torch.zeros(3, 4)), "data must be three sample sets, got a Tensor; make them by nas.batches.split"),
        (lambda: nas.search(own, 0.1), r"nas.search needs a space or its name, got a function, which is no search space: call it; "),
        (lambda: nas.search(Sum(), 0.1), r"got a Sum, which is no search space; nas.spaces.model.model_space\(...\) makes one"),
        (lambda: nas.search("synthetic:3", "small"), "eps must be a number or several, such as 0.005, got 'small'"),
        (lambda: nas.search("synthetic:3", 0.1, threads=1), r"search takes no 'threads'; call torch.set_num_threads\(n\)"),
        (lambda: nas.search("synthetic:3", 0.1, trails=1), "search takes no option 'trails'; did you mean 'trials'"),
        (lambda: nas.search("synthetic:3", 0.1, where="params<10", workdir=None), "bound 'params<10' must read"),
        (lambda: nas.search("synthetic:3", 0.1, optimizer="adam", workdir=None), "unknown optimizer 'adam'; known: .*additive"),
    ],
)
def test_a_mistake_in_a_python_call_is_one_line(make: Any, message: str) -> None:
    with pytest.raises(NasError, match=message):
        make()


def test_what_a_loss_raises_is_one_line_with_its_place(space: NetworkSpace) -> None:
    task = replace(space, loss=lambda output, samples: float((output - samples.target).mean())).prepare(Quiet())  # type: ignore[operator]  # there is none
    assert task.heldout_loss is not None
    with pytest.raises(UserCodeError, match=r"the loss of space 'own': TypeError: .*test_model_space.py:\d+\)"):
        task.heldout_loss((0, 0))


def test_load_model_says_what_it_was_given_instead(space: NetworkSpace, tmp_path: Path) -> None:
    runs = tmp_path / "alone" / "runs"  # nothing lies beside it
    nas.search(space, (1e8, 1e9), workdir=runs, name="run", trials=3)
    folder = runs / "run" / "winner-eps1e+08"
    for given, message in (
        ((net(), folder), "in this order; got a Sequential as the folder"),
        ((folder, Block), r"got the class Block; write Block\(\)"),
        ((folder, Block()), r"the given Block has no module '\d'"),
        ((runs / "run", net()), "is no folder of a saved model; did you mean '.*winner-eps1e"),
        ((runs / "run" / "winner", net()), "is no folder of a saved model; did you mean '.*winner-eps1e"),
        ((runs, net()), "is no folder of a saved model; a model's folder holds architecture.json"),
    ):
        with pytest.raises(InputError, match=message):
            load_model(*given)  # type: ignore[type-var]


def partly_fitting() -> NetworkSpace:
    return own(recipes=[LowRank(0.3), Separable()])


def test_spaces_show_gives_every_reason_why_a_recipe_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "shown.py"
    file.write_text("from tests.spaces.test_model_space import partly_fitting\n\ndef make_space():\n    return partly_fitting()\n")
    done = command("spaces", "show", str(file))
    assert "left out: separable at low, high: needs a convolution" in " ".join(done.stdout.split())
    assert set(json.loads(command("spaces", "show", str(file), "--json").stdout)["left_out"]) == {"low", "high"}


def test_nas_blocks_lists_every_generic_reduction_with_what_it_fits() -> None:
    rows = json.loads(command("blocks", "list", "--json").stdout)
    assert {"low_rank", "bypass", "separable", "teacher_slice"} <= {row["name"] for row in rows}
    assert all(row["does"] and row["fits"] for row in rows)
    assert "from nas.blocks.reductions.depth import Bypass, FewerLayers" in command("blocks").stdout
    shown = json.loads(command("blocks", "show", "low_rank", "--json").stdout)
    assert shown["options"] == {"fraction": 0.25}
    missing = command("blocks", "show", "low_rang")
    assert missing.returncode == 2
    assert "did you mean 'low_rank'" in missing.stderr
