"""Properties that hold for any space, graph, cost table, bound, configuration and record."""

import math
import tomllib
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nas.blocks.store import BlockRecord, BlockStore, block_key
from nas.errors import InputError, NasError
from nas.graph import StageGraph, Step
from nas.problem import Bound, CostTable
from nas.record import Record
from nas.run_directory import to_toml
from nas.space import Choice, SearchSpace, Stage
from nas.trial import Trial

SIZES = st.lists(st.integers(1, 5), min_size=1, max_size=5)
NAMES = st.text("abcdefghij_0123456789", min_size=1, max_size=8)
FEW = settings(max_examples=60, deadline=None)


@given(SIZES, st.randoms(use_true_random=False))
@FEW
def test_a_candidate_is_the_same_after_its_names(sizes: list[int], chance: Any) -> None:
    space = SearchSpace.of_sizes("any", sizes)
    candidate = tuple(chance.randrange(size) for size in sizes)
    names = space.decode(candidate)
    assert space.encode(names) == candidate
    assert space.parse(",".join(f"{stage} = {choice}" for stage, choice in names.items())) == candidate


@given(SIZES)
@FEW
def test_the_enumeration_has_every_candidate_once_and_the_teacher_first(sizes: list[int]) -> None:
    space = SearchSpace.of_sizes("any", sizes)
    rows = [tuple(row) for row in space.enumerate().tolist()]
    assert len(rows) == len(set(rows)) == space.n_candidates == math.prod(sizes)
    assert rows[0] == space.teacher
    assert all(space.check(row) == row for row in rows)


@given(st.text(max_size=60))
@settings(max_examples=500, deadline=None)
def test_any_text_is_a_candidate_or_one_clear_error(text: str) -> None:
    space = SearchSpace("any", (Stage("a", (Choice("teacher"), Choice("b"))), Stage("c", (Choice("teacher"),))))
    try:
        assert space.check(space.parse(text)) in {(0, 0), (1, 0)}
    except NasError:
        return


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[int], CostTable]:
    sizes = draw(SIZES)
    numbers = st.integers(0, 10**9)
    by_choice = {}
    for metric in ("params", "macs"):
        rows = [[float(draw(numbers)) if k < size else math.nan for k in range(max(sizes))] for size in sizes]
        by_choice[metric] = np.array(rows)
    return sizes, CostTable(by_choice, {"params": float(draw(numbers))})


@given(tables())
@FEW
def test_totals_are_sums_and_lie_within_reach(given_table: tuple[list[int], CostTable]) -> None:
    sizes, costs = given_table
    rows = SearchSpace.of_sizes("any", sizes).enumerate()[:200]
    for metric in costs.metrics:
        totals = costs.totals(rows, metric)
        low, high = costs.reach(metric)
        assert ((totals >= low) & (totals <= high)).all()
        for row, total in zip(rows[:20].tolist(), totals, strict=False):
            assert costs.of(tuple(row))[metric] == total == costs.fixed.get(metric, 0) + sum(costs.by_choice[metric][s][k] for s, k in enumerate(row))


@given(tables(), st.sampled_from(["params", "macs"]), st.integers(1, 300))
@FEW
def test_a_bound_in_percent_is_a_share_of_the_teacher_or_cannot_hold(given_table: tuple[list[int], CostTable], metric: str, percent: int) -> None:
    sizes, costs = given_table
    teacher, least = costs.of((0,) * len(sizes))[metric], costs.reach(metric)[0]
    try:
        bound = Bound.parse(f" {metric} <= {percent}% ", costs)
    except InputError:
        assert teacher * percent / 100 < least
    else:
        assert math.isclose(bound.limit, teacher * percent / 100)


@given(st.text(max_size=30) | st.from_regex(r"\s*(params|macs|flops)\s*<=\s*[0-9.eE+-]{0,12}[kKMGT%]?", fullmatch=True))
@settings(max_examples=500, deadline=None)
def test_any_text_is_a_bound_or_one_clear_error(text: str) -> None:
    costs = CostTable({"params": np.array([[3.0, 1.0]]), "macs": np.array([[3.0, 1.0]])})
    try:
        bound = Bound.parse(text, costs)
    except NasError:
        return
    else:
        assert bound.metric in ("params", "macs")
        assert bound.limit >= 1


@st.composite
def graphs(draw: st.DrawFn) -> StageGraph:
    """Steps that each read one or two of the names written before."""
    known, steps = ["x"], []
    for number in range(draw(st.integers(1, 7))):
        reads = tuple(draw(st.lists(st.sampled_from(known), min_size=1, max_size=2)))
        writes = draw(st.sampled_from([f"v{number}", *known[1:]]))
        steps.append(Step(f"s{number}", reads, (writes,), Mix(number, len(reads))))
        known.append(writes)
    return StageGraph(("x",), tuple(steps), known[-1])


class Mix(nn.Module):
    """An affine function of what it reads, another for each number."""

    def __init__(self, number: int, reads: int) -> None:
        super().__init__()
        self.number, self.reads = number, reads

    def forward(self, *values: torch.Tensor) -> torch.Tensor:
        return sum((k + 2) * value for k, value in enumerate(values)) + self.number  # type: ignore[return-value]


@given(graphs())
@FEW
def test_a_graph_is_acyclic_and_a_step_changes_only_with_its_ancestors(graph: StageGraph) -> None:
    assert nx.is_directed_acyclic_graph(graph.dag)
    written: dict[str, torch.Tensor] = {}
    graph.run({"x": torch.ones(1)}, observe=lambda step, _, out: written.update({step.name: out[0]}))
    changed: dict[str, torch.Tensor] = {}
    blocks = {"s0": Mix(100, graph.steps[0].module.reads)}
    graph.run({"x": torch.ones(1)}, blocks, observe=lambda step, _, out: changed.update({step.name: out[0]}))
    for name in written:
        assert ("s0" in graph.ancestors[name]) == (not torch.equal(written[name], changed[name]))


@given(graphs(), st.text(max_size=5))
@FEW
def test_a_graph_that_reads_what_nobody_wrote_is_refused(graph: StageGraph, name: str) -> None:
    known = {"x", *(written for step in graph.steps for written in step.writes)}
    if name in known:
        return
    with pytest.raises(InputError, match="which no earlier step writes"):
        StageGraph(graph.inputs, (*graph.steps, Step("last", (name,), ("y",), nn.Identity())), "y")


TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
VALUES = TEXT | st.integers(-(2**53), 2**53) | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.lists(TEXT, max_size=3)


@given(st.dictionaries(NAMES, st.dictionaries(NAMES | TEXT, VALUES, max_size=4), max_size=3))
@settings(max_examples=200, deadline=None)
def test_a_configuration_is_read_back_equal(config: dict[str, dict[str, Any]]) -> None:
    assert tomllib.loads(to_toml(config)) == config


NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
TRIALS = st.builds(
    Trial, st.just(0), st.lists(st.integers(0, 10**6), max_size=6).map(tuple), st.dictionaries(TEXT, NUMBERS, max_size=3), st.none() | NUMBERS, NUMBERS,
    st.integers(0, 10**9), NUMBERS, st.sampled_from(["complete", "failed"]), TEXT, st.dictionaries(TEXT, TEXT | st.booleans() | NUMBERS, max_size=3),
)  # fmt: skip


@given(TRIALS, st.dictionaries(TEXT.map(lambda text: "x" + text), st.recursive(TEXT | NUMBERS, lambda inner: st.lists(inner, max_size=3)), max_size=3))
@settings(max_examples=100, deadline=None)
def test_a_trial_and_facts_are_read_back_equal(trial: Trial, facts: dict[str, Any]) -> None:
    with Record() as record:
        record.add(trial)
        for name, value in facts.items():
            record.set_fact(name, value)
        assert record.trials() == [trial]
        assert {name: record.fact(name) for name in record.facts()} == facts


SHAPES = st.lists(st.integers(0, 4), max_size=3)


@given(st.dictionaries(NAMES, st.tuples(SHAPES, st.sampled_from([torch.float32, torch.float16, torch.int64])), max_size=3), TEXT)
@settings(max_examples=30, deadline=None)
def test_a_block_is_read_back_equal(tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, tuple[list[int], torch.dtype]], choice: str) -> None:
    weights = {name: torch.arange(math.prod(shape)).reshape(shape).to(dtype) for name, (shape, dtype) in tensors.items()}
    store, key = BlockStore(tmp_path_factory.mktemp("store")), block_key(choice=choice)
    record = BlockRecord("stage", choice, {"a": [1, choice]}, 0.5, {"h": 0.5})
    store.put(key, record, weights)
    assert store.record(key) == record
    found = store.weights(key)
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) and found[name].dtype == weights[name].dtype for name in weights)


@given(st.dictionaries(NAMES, VALUES), st.dictionaries(NAMES, VALUES))
@FEW
def test_keys_of_blocks_agree_exactly_when_their_parts_do(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert block_key(spec=one) == block_key(spec=dict(reversed(one.items())))
    if repr(sorted(one.items())) != repr(sorted(other.items())) and one != other:
        assert block_key(spec=one) != block_key(spec=other)
