"""Stages whose tensors count their samples in another dimension than the first: recurrent layers and their states."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from nas.blocks.recipe import BlockRecipe
from nas.blocks.saved import load_model, save_model
from nas.cut import CutModel, cut
from nas.data import Samples
from nas.exported import export
from nas.space import Choice
from nas.traced import NotTraceable, trace

X = {"x": torch.randn(7, 5, 4, generator=torch.Generator().manual_seed(3))}


class Tagger(nn.Module):
    """An LSTM over `(B, T, 4)` whose states, `(2, B, 6)`, a second one goes on with; both may want the time first."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.first, self.second = (nn.LSTM(width, 6, num_layers=2, batch_first=batch_first) for width in (4, 6))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = x if self.batch_first else x.transpose(0, 1)
        h, states = self.first(h)
        h, _ = self.second(h, states)
        result: Tensor = self.head(h if self.batch_first else h.transpose(0, 1))
        return result


@dataclass(frozen=True)
class Doubled(BlockRecipe):
    """The teacher's layer with its weights doubled: something else, called alike."""

    recipe: ClassVar[str] = "doubled_for_tests"

    def build(self, teacher: nn.Module) -> nn.Module:
        twin = copy.deepcopy(teacher)
        for parameter in twin.parameters():
            parameter.data *= 2
        return twin


def tagger(batch_first: bool) -> Tagger:
    torch.manual_seed(0)
    return Tagger(batch_first).eval()


@pytest.fixture(params=[True, False], ids=["samples first", "time first"])
def whole(request: Any) -> CutModel:
    return cut(tagger(request.param), {"low": "first", "high": "second"}, Samples(X, torch.arange(7)))


def test_values_have_their_samples_first_whatever_the_module_wants(whole: CutModel) -> None:
    passed = whole.passed(X)
    assert [tuple(value.shape) for value in passed["low"][1]] == [(7, 5, 6), (7, 2, 6), (7, 2, 6)]
    assert [tuple(value.shape) for value in passed["high"][0]] == [(7, 5, 6), (7, 2, 6), (7, 2, 6)]
    rest = whole.steps[-1]
    assert rest.module(X["x"]).shape == whole.run(X).shape


@torch.no_grad()
def test_a_block_at_such_a_stage_computes_what_it_does_in_the_model(whole: CutModel) -> None:
    block = Doubled().build(whole["high"].module)
    changed: Any = copy.deepcopy(whole.model)
    changed.second = block
    assert torch.equal(whole.run(X, {"high": block}), changed(X["x"]))
    reads, _ = whole.passed(X)["high"]
    layout = whole["high"].layout
    assert layout is not None
    assert torch.equal(layout.call(block, [value[:3] for value in reads])[0], layout.call(block, reads)[0][:3])


@torch.no_grad()
def test_the_data_flow_that_export_finds_computes_the_same(whole: CutModel) -> None:
    samples, block = Samples(X, torch.arange(7)), Doubled().build(whole["low"].module)
    with pytest.raises(NotTraceable):
        trace(whole, samples)
    graph = export(whole, samples)
    assert graph.ancestors["high"] >= {"low"}
    assert torch.equal(graph.run(X, {"low": block}), whole.run(X, {"low": block}))


def test_such_a_model_is_saved_and_loaded_to_the_bit(whole: CutModel, tmp_path: Path) -> None:
    recipe = Doubled()
    block = recipe.build(whole["low"].module)
    save_model(whole, {"low": (Choice("doubled", recipe), block)}, tmp_path)
    loaded = load_model(tmp_path, tagger(whole.model.batch_first), [recipe])  # type: ignore[arg-type]
    assert torch.equal(loaded(X["x"]), whole.run(X, {"low": block}))
