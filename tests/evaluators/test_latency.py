from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import nas
from nas.batches import collect, split
from nas.blocks.calibration import CalibrationSettings
from nas.blocks.reductions.widths import FeedForward
from nas.data import Splits
from nas.errors import InputError
from nas.evaluators import latency
from nas.evaluators.latency import LatencyTable, Setting, read_latency, write_latency
from nas.graph import StageGraph, Step
from nas.progress import Quiet
from nas.space import Stage
from nas.spaces.model import model_space
from nas.spaces.network import NetworkSpace


@pytest.fixture
def network(graph: StageGraph, stages: tuple[Stage, ...], splits: Splits, home: Path) -> NetworkSpace:
    return NetworkSpace("toy", graph, stages, splits, calibration=CalibrationSettings(max_steps=20), home=home)


class Clock:
    """A clock that only the toy network's layers move: 1 ms for each row of their weights, and 5 ms for each wait."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(latency, "_clock", lambda device: ("toy", lambda: self.now))
        forward = nn.Linear.forward

        def slow(layer: nn.Linear, x: Tensor) -> Tensor:
            self.now += 0.001 * layer.out_features
            return forward(layer, x)

        monkeypatch.setattr(nn.Linear, "forward", slow)
        monkeypatch.setattr(latency, "_wait", lambda values: setattr(self, "now", self.now + 0.0025))


def test_slopes_and_overhead_are_told_apart_and_add_up_to_whole_candidates(network: NetworkSpace, monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    found = network.measure_latency(Quiet())
    table = read_latency(network.latency_path)
    assert table.stages["a"] == pytest.approx({"teacher": 24.0, "half": 16.0, "tiny": 10.0})
    assert table.fixed == pytest.approx(8 + 12 + 8)
    assert table.overhead == pytest.approx(2.5)
    assert found["teacher_ms"] == pytest.approx(30.5 + 24 + 24 + 24)
    assert found["n_checked"] == 20
    assert found["largest_error"] == pytest.approx(0.0, abs=1e-9)


def test_a_search_minimises_measured_latency(network: NetworkSpace, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"no latency was measured for this space .*--measure-latency"):
        nas.search(network, 1e9, minimize="latency_ms", workdir=None)
    with monkeypatch.context() as patched:
        Clock(patched)
        network.measure_latency(Quiet())
    result = nas.search(network, 1e9, minimize="latency_ms", where=("memory_mb<=90%",), optimizer="random", trials=26, workdir=None)
    winner = result.winners[0].trial
    assert winner is not None
    assert winner.candidate == (2, 2, 2)
    assert winner.costs["latency_ms"] == pytest.approx(30.5 + 30)
    weights = sum(p.numel() for step in network.graph.steps for p in step.module.parameters()) * 4 / 1e6
    assert result.study.problem.costs.of((0, 0, 0))["memory_mb"] == pytest.approx(weights)


@pytest.mark.parametrize("change", [{"device": "another machine"}, {"dtype": "float16"}, {"shapes": {"x": [1, 9]}}])
def test_a_table_of_another_setting_is_refused(network: NetworkSpace, change: dict[str, object]) -> None:
    table = LatencyTable(replace(Setting.of(network.inputs(2)), **change), {}, 1.0, 0.0)  # type: ignore[arg-type]
    write_latency(network.latency_path, table)
    with pytest.raises(InputError, match=f"another setting \\({next(iter(change))}: .* in the table, .* here\\); measure it here"):
        network.cost("latency_ms")


def test_tables_are_read_as_written_and_damage_is_named(network: NetworkSpace) -> None:
    table = LatencyTable(Setting.of(network.inputs(3)), {"a": {"teacher": 1.5}}, 1.0, 0.25)
    write_latency(network.latency_path, table)
    assert read_latency(network.latency_path) == table
    with pytest.raises(InputError, match="the latency table has no 'a/half'"):
        table.rows(network.stages)
    network.latency_path.write_text('{"setting": {}}')
    with pytest.raises(InputError, match="cannot be read"):
        network.cost("latency_ms")
    with pytest.raises(InputError, match="batch must lie between 1 and 128"):
        network.inputs(0)


def test_a_call_takes_some_time() -> None:
    step = Step("wide", ("x",), ("y",), nn.Linear(256, 256))
    assert latency.call_ms(step, step.module, (torch.ones(8, 256),), torch.empty(1000)) > 0


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 24), nn.Linear(24, 8)

    def forward(self, h: Tensor, *, scale: Tensor) -> tuple[Tensor]:
        return (h + scale * self.second(self.first(h).relu()),)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.low, self.high, self.head = Scaled(), Scaled(), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        (h,) = self.low(x, scale=x.mean(1, keepdim=True))
        result: Tensor = self.head(self.high(h, scale=h.mean(1, keepdim=True))[0])
        return result


@pytest.mark.parametrize("reuse", [True, False])
def test_modules_of_a_cut_model_are_timed_as_the_model_calls_them(reuse: bool, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = split(collect([torch.randn(64, 8)]))
    network = model_space("own", Net().eval(), {"low": "low", "high": "high"}, data, [FeedForward(0.25)], reuse=reuse, home=home)
    Clock(monkeypatch)
    found = network.measure_latency(Quiet())
    assert read_latency(network.latency_path).stages["low"] == pytest.approx({"teacher": 24 + 8, "feed_forward-0.25": 6 + 8})
    assert found["teacher_ms"] == pytest.approx(2.5 + 2 * 32 + 3)
    assert found["largest_error"] == pytest.approx(0.0, abs=1e-9)
