"""Graphs by torch.export: what torch.fx cannot follow, computed bit for bit."""

import pytest
import torch
from torch import Tensor, nn

from nas.batches import collect, split
from nas.blocks.reductions.depth import Bypass
from nas.cut import CutModel, cut
from nas.evaluators.divergence import DivergenceEvaluator
from nas.exported import export
from nas.graph import StageGraph
from nas.model_call import ModelCall
from nas.spaces.model import model_space
from nas.traced import NotTraceable, TracedModel, trace
from tests.core.test_traced import SAMPLES, STAGES, Branching, Pair, skips


class OnShapes(nn.Module):
    """Control flow on shapes, numbers made of shapes, an operator with two outputs, an attribute of a value that a stage wrote."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Linear(4, 6), nn.ModuleList([Pair(), Pair()])
        self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        if h.shape[-1] != 6:
            raise ValueError("width")
        start = h.reshape(x.shape[0], 2, 3)
        for block in self.body:
            h, _ = block(h, bias=None)
        values, _ = (h.reshape(x.shape[0], 2, 3) + start).max(1)
        return self.head(self.norm(torch.cat([values, start[:, 0]], 1)))  # type: ignore[no-any-return]


def on_shapes() -> CutModel:
    torch.manual_seed(0)
    return cut(OnShapes().eval(), {"one": "body.0", "two": "body.1"}, SAMPLES)


def test_control_flow_on_shapes_is_exported_where_fx_gives_up() -> None:
    whole = on_shapes()
    with pytest.raises(NotTraceable):
        trace(whole, SAMPLES)
    graph = export(whole, SAMPLES)
    assert [step.name for step in graph.steps if not step.name.startswith("between")] == ["one", "two"]
    assert torch.equal(graph.run(SAMPLES.inputs), whole.run(SAMPLES.inputs))
    assert graph.ancestors["two"] >= {"one"}
    assert {id(p) for step in graph.steps for p in step.module.parameters()} == {id(p) for p in whole.model.parameters()}


@pytest.mark.parametrize("make", [on_shapes, lambda: cut(skips(), STAGES, SAMPLES, ModelCall(output="y"))])
def test_candidates_measure_the_same_with_and_without_the_data_flow(make) -> None:  # type: ignore[no-untyped-def]
    whole = make()
    torch.manual_seed(1)
    names = list(whole.paths)
    blocks = [[whole[name].module, Pair() if name != "tail" else nn.Linear(6, 6)] for name in names]

    def measured(graph: StageGraph) -> list[float | None]:
        evaluator = DivergenceEvaluator(graph, names, blocks, [["teacher", "other"]] * len(names), SAMPLES, identity="i")
        candidates = [(1,) + (0,) * (len(names) - 1), (0,) * (len(names) - 1) + (1,), (1,) * len(names)]
        return [m.divergence for m in evaluator.measure(candidates)]

    assert measured(export(whole, SAMPLES)) == measured(whole)


def test_a_space_takes_what_is_exported_and_says_why_a_model_has_no_graph() -> None:
    data = split(collect([SAMPLES.inputs["x"]]))
    assert isinstance(model_space("shapes", on_shapes().model, {"norm": "norm"}, data, [Bypass()]).graph, TracedModel)
    branching = model_space("values", Branching().eval(), ["layer"], data, [Bypass()])
    assert isinstance(branching.graph, CutModel)
    (note, *_) = branching.notes
    assert "cannot be traced: tracing failed: symbolically traced variables" in note
    assert "torch.export failed" in note
