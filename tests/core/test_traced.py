from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nas.cut import cut
from nas.data import Samples
from nas.evaluators.divergence import DivergenceEvaluator
from nas.graph import StageGraph
from nas.model_call import ModelCall
from nas.traced import NotTraceable, trace


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, h: Tensor, bias: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        out = self.layer(h).tanh() if bias is None else self.layer(h) + bias
        return out, {"skip": out * 0.5}


class Skips(nn.Module):
    """Two stages down, two up that read the skips of both, code in between, a dict as output."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 6)
        self.down = nn.ModuleList([Pair(), Pair()])
        self.up = nn.Bilinear(6, 6, 6)
        self.tail = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
        self.shift = nn.Parameter(torch.ones(6))

    def forward(self, x: Tensor, noise: Tensor | None = None) -> dict[str, Tensor]:
        h = self.stem(x)
        skips = []
        for block in self.down:
            h, more = block(h, bias=self.shift)
            skips.append(more["skip"])
        joined = self.up(torch.cat([h, h], 1)[:, :6], skips[0] + skips[1])
        return {"y": self.tail(joined), "h": h}


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if x.sum() > -1e9 else x


SAMPLES = Samples({"x": torch.randn(40, 4, generator=torch.Generator().manual_seed(0))}, torch.arange(40))
STAGES = {"first": "down.0", "second": "down.1", "tail": ["tail.0", "tail.1"]}


def skips() -> Skips:
    torch.manual_seed(0)
    return Skips().eval()


def test_skips_and_containers_are_traced_and_the_output_is_the_models_own() -> None:
    model = skips()
    graph = trace(cut(model, STAGES, SAMPLES, ModelCall(output="y")), SAMPLES)
    assert torch.equal(graph.run(SAMPLES.inputs), model(**SAMPLES.inputs)["y"])
    assert graph.ancestors["second"] >= {"first"}
    assert "tail" not in graph.ancestors["second"]


def test_a_sequential_is_a_chain_of_its_stages() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.Linear(6, 2)).eval()
    graph = trace(cut(model, ["2"], SAMPLES), SAMPLES)
    assert [step.name for step in graph.steps] == ["between 0", "2", "between 2"]
    assert torch.equal(graph.run(SAMPLES.inputs), model(SAMPLES.inputs["x"]))


def test_candidates_measure_the_same_with_and_without_the_data_flow() -> None:
    whole = cut(skips(), STAGES, SAMPLES, ModelCall(output="y"))
    torch.manual_seed(1)
    blocks = [[whole[name].module, nn.Sequential(Pair())[0] if name != "tail" else nn.Linear(6, 6)] for name in STAGES]
    keys = [["teacher", "other"]] * 3

    def measured(graph: StageGraph) -> list[float | None]:
        evaluator = DivergenceEvaluator(graph, list(STAGES), blocks, keys, SAMPLES, identity="i")
        return [m.divergence for m in evaluator.measure([(1, 0, 0), (1, 1, 0), (0, 1, 1), (0, 0, 1), (0, 0, 0)])]

    assert measured(trace(whole, SAMPLES)) == measured(whole)


def test_steps_before_a_changed_stage_are_not_run_again() -> None:
    model = skips()
    graph = trace(cut(model, STAGES, SAMPLES, ModelCall(output="y")), SAMPLES)
    blocks = [[graph[name].module, graph[name].module] for name in ("first", "second")] + [[graph["tail"].module, nn.Linear(6, 6)]]
    calls: list[str] = []
    model.stem.register_forward_hook(lambda *_: calls.append("stem"))
    model.tail[2].register_forward_hook(lambda *_: calls.append("tail.2"))
    evaluator = DivergenceEvaluator(graph, list(STAGES), blocks, [["a", "b"]] * 3, SAMPLES, identity="i")
    evaluator.outputs((0, 0, 0))
    calls.clear()
    evaluator.outputs((0, 0, 1))
    assert set(calls) == {"tail.2"}


def test_parameters_of_all_steps_are_the_models() -> None:
    model = skips()
    graph = trace(cut(model, STAGES, SAMPLES, ModelCall(output="y")), SAMPLES)
    assert sum(p.numel() for step in graph.steps for p in step.module.parameters()) == sum(p.numel() for p in model.parameters())


def test_control_flow_on_values_is_not_traced_and_the_reason_is_told() -> None:
    with pytest.raises(NotTraceable, match="tracing failed: symbolically traced variables cannot be used as inputs to control flow"):
        trace(cut(Branching().eval(), ["layer"], SAMPLES), SAMPLES)


def test_a_parameter_between_stages_that_is_used_twice_is_not_traced(tmp_path: Path) -> None:
    class Tied(Branching):
        def __init__(self) -> None:
            super().__init__()
            self.shared = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.shared(self.layer(self.shared(x)))

    with pytest.raises(NotTraceable, match="a parameter is used at two places"):
        trace(cut(Tied().eval(), ["layer"], SAMPLES), SAMPLES)
