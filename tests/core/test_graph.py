import pytest
import torch
from torch import nn

from nas.errors import ContractError, InputError
from nas.graph import StageGraph, Step
from tests.conftest import Down


def test_run_equals_calling_the_modules_by_hand(graph: StageGraph) -> None:
    x = torch.randn(3, 4)
    stem, a, b, c, out = (step.module for step in graph.steps)
    h, skip = a(stem(x))
    h, other = b(h)
    assert torch.equal(graph.run({"x": x}), out(c(h, skip), other))


def test_run_with_another_block_changes_only_that_step(graph: StageGraph) -> None:
    x, block = torch.randn(3, 4), Down(2)
    seen = {}
    graph.run({"x": x}, {"b": block}, observe=lambda step, _reads, writes: seen.update({step.name: writes}))
    expected = block(seen["a"][0])
    assert all(torch.equal(got, want) for got, want in zip(seen["b"], expected, strict=True))


def test_ancestors_follow_the_data_not_the_order(graph: StageGraph) -> None:
    assert graph.ancestors["c"] == {"stem", "a", "b", "c"}
    assert graph.ancestors["a"] == {"stem", "a"}
    assert graph.dag.edges["a", "c"]["values"] == ("skip",)
    assert ("a", "out") not in graph.dag.edges


def test_a_graph_that_reads_what_nobody_writes_is_refused() -> None:
    with pytest.raises(InputError, match="step 'a' reads 'hh', which no earlier step writes; did you mean 'h'"):
        StageGraph(("h",), (Step("a", ("hh",), ("y",), nn.Identity()),), "y")
    with pytest.raises(InputError, match="output 'z' is written by no step"):
        StageGraph(("h",), (Step("a", ("h",), ("y",), nn.Identity()),), "z")
    with pytest.raises(InputError, match="two steps named 'a'"):
        StageGraph(("h",), (Step("a", ("h",), ("h",), nn.Identity()),) * 2, "h")


def test_a_module_that_writes_too_few_values_is_named(graph: StageGraph) -> None:
    with pytest.raises(ContractError, match=r"step 'a' must write \('h', 'skip'\), wrote 1 values"):
        graph.run({"x": torch.randn(1, 4)}, {"a": nn.Identity()})
