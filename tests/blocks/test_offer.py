from dataclasses import dataclass

import pytest
import torch
from torch import nn

from nas.blocks.offer import offer
from nas.blocks.recipe import BlockRecipe
from nas.blocks.reductions.convolutions import Separable
from nas.blocks.reductions.depth import Bypass
from nas.blocks.reductions.low_rank import LowRank
from nas.blocks.reductions.widths import FeedForward
from nas.cut import CutModel, cut
from nas.data import Samples
from nas.errors import ContractError, DoesNotFit, InputError
from nas.space import Choice

X = {"x": torch.randn(4, 6, generator=torch.Generator().manual_seed(0))}


@dataclass(frozen=True)
class Line(BlockRecipe):
    width: int

    def build(self, teacher: nn.Module) -> nn.Module:
        return nn.Linear(6, self.width, device=next(teacher.parameters()).device)


@pytest.fixture
def graph() -> CutModel:
    model = nn.Sequential(nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 6)), nn.Linear(6, 3)).eval()
    return cut(model, {"mlp": "0", "head": "1"}, Samples(X, torch.arange(4)))


def test_recipes_for_all_stages_are_left_out_where_they_do_not_fit_with_the_reason(graph: CutModel) -> None:
    stages, notes = offer(graph, [FeedForward(0.5), Bypass(), Choice("thin", LowRank(0.3))], X)
    assert [[choice.name for choice in stage.choices] for stage in stages] == [["teacher", "feed_forward-0.5", "bypass", "thin"], ["teacher", "thin"]]
    assert any("stage 'head': 2 recipes do not fit: feed_forward-0.5 needs two Linear" in note and "bypass needs one output" in note for note in notes)


def test_a_recipe_named_for_a_stage_must_fit_it(graph: CutModel) -> None:
    with pytest.raises(DoesNotFit, match=r"^stage 'mlp': separable needs a convolution .* found Linear, Tanh$"):
        offer(graph, {"mlp": [Separable()]}, X)


def test_recipes_for_a_stage_that_is_not_there_are_refused(graph: CutModel) -> None:
    with pytest.raises(InputError, match="recipes are given for stage 'heat', which the space lacks; did you mean 'head'"):
        offer(graph, {"heat": [LowRank(0.5)]}, X)


def test_a_users_block_that_changes_the_shape_is_an_error_not_a_note(graph: CutModel) -> None:
    with pytest.raises(ContractError, match=r"block 'mlp/5' must write 'mlp.out0' as \(4, 6\) like the teacher, wrote \(4, 5\)|block 'mlp/-5'"):
        offer(graph, [Line(5)], X)


def test_a_block_larger_than_the_teachers_is_warned_of(graph: CutModel) -> None:
    @dataclass(frozen=True)
    class Large(BlockRecipe):
        inner: int

        def build(self, teacher: nn.Module) -> nn.Module:
            device = next(teacher.parameters()).device
            return nn.Sequential(nn.Linear(6, self.inner, device=device), nn.Linear(self.inner, 6, device=device))

    _, notes = offer(graph, {"mlp": [Choice("large", Large(50))]}, X)
    assert notes == ("warning: block 'mlp/large' has 656 parameters, the teacher's only 162",)


def test_without_a_word_every_generic_reduction_is_tried(graph: CutModel) -> None:
    stages, _ = offer(graph, None, X)
    assert {"low_rank-0.25", "feed_forward-0.5", "bypass"} <= {choice.name for choice in stages[0].choices}
