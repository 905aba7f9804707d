from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from nas.blocks.offer import offer
from nas.blocks.recipe import BlockRecipe
from nas.blocks.reductions.convolutions import Separable
from nas.blocks.reductions.depth import Bypass
from nas.blocks.reductions.low_rank import LowRank
from nas.blocks.reductions.slices import TeacherSlice
from nas.blocks.reductions.widths import Channels, FeedForward
from nas.cut import CutModel, cut
from nas.data import Samples
from nas.errors import ContractError, DoesNotFit, InputError, UserCodeError
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
    stages, notes, left_out = offer(graph, [FeedForward(0.5), Bypass(), Choice("thin", LowRank(0.3))], X)
    assert [[choice.name for choice in stage.choices] for stage in stages] == [["teacher", "feed_forward-0.5", "bypass", "thin"], ["teacher", "thin"]]
    (line,) = notes
    assert line.startswith("recipes that fit, of 3: ")
    assert "head 1; `nas spaces show SPACE` says why" in line
    assert left_out["head"]["feed_forward-0.5"].startswith("feed_forward-0.5 needs two Linear")
    assert "bypass needs one output" in left_out["head"]["bypass"]


def test_a_recipe_that_fits_no_stage_at_all_is_named_with_its_reason(graph: CutModel) -> None:
    useless, counts = offer(graph, [Separable(), FeedForward(0.5), LowRank(0.3)], X).notes
    assert useless.startswith("warning: recipe 'separable' fits no stage: needs a convolution with a kernel above 1")
    assert useless.endswith("(at mlp)")
    assert counts.startswith("recipes that fit, of 3: mlp 2, head 1")
    assert not any("fits no stage" in note for note in offer(graph, None, X).notes)  # most reductions of the toolkit never fit


def test_what_does_not_fit_is_told_by_the_name_that_its_choice_was_given(graph: CutModel) -> None:
    thin, slice_ = Choice("thin", Channels(0.5)), Choice("small", TeacherSlice({"inner": 3}))
    notes = offer(graph, [LowRank(0.3), thin, slice_], X).notes
    assert notes[0].startswith("warning: recipe 'thin' fits no stage: needs two Conv layers")
    assert notes[1].startswith("warning: recipe 'small' fits no stage: teacher_slice needs 'args' to build a Sequential")
    assert not any("channels-0.5" in note for note in notes)
    with pytest.raises(DoesNotFit, match=r"^stage 'mlp': thin needs two Conv layers"):
        offer(graph, {"mlp": [thin]}, X)
    with pytest.raises(DoesNotFit, match=r"^stage 'mlp', choice 'small': teacher_slice needs 'args' to build a Sequential"):
        offer(graph, {"mlp": [slice_]}, X)


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

    _, notes, _ = offer(graph, {"mlp": [Choice("large", Large(50))]}, X)
    assert notes == ("warning: block 'mlp/large' has 656 parameters, the teacher's only 162",)


def test_without_a_word_every_generic_reduction_is_tried(graph: CutModel) -> None:
    stages = offer(graph, None, X).stages
    assert {"low_rank-0.25", "feed_forward-0.5", "bypass"} <= {choice.name for choice in stages[0].choices}


@dataclass(frozen=True)
class Meddling(BlockRecipe):
    how: str

    def build(self, teacher: nn.Module) -> nn.Module:
        weight = next(teacher.parameters())
        if self.how == "renames":
            teacher.added = nn.Identity()
        elif self.how == "writes":
            weight.data.add_(1)
            with torch.no_grad():
                weight.add_(1)
        elif self.how == "fails":
            return nn.Linear(teacher.missing_width, 6)  # type: ignore[arg-type]
        elif self.how == "nothing":
            return None  # type: ignore[return-value]
        return teacher


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("renames", "block 'mlp/-renames': Meddling.build must leave the teacher alone, it changed 'added' of it; work on copy.deepcopy"),
        ("writes", "must leave the teacher alone, it changed '0.weight'"),
        ("shares", "shares parameter '0.weight' with the teacher"),
        ("nothing", "Meddling.build must return an nn.Module, got NoneType"),
        (
            "fails",
            r"Meddling.build: AttributeError: .*missing_width.*test_offer.py:\d+\); where the recipe does not fit, build must raise nas.errors.DoesNotFit",
        ),
    ],
)
def test_a_build_that_fails_or_touches_the_teacher_is_named(graph: CutModel, how: str, message: str) -> None:
    with pytest.raises((ContractError, UserCodeError), match=message):
        offer(graph, {"mlp": [Meddling(how)]}, X)


@pytest.mark.parametrize(
    ("recipes", "message"),
    [
        ([Bypass], r"stage 'mlp': a recipe must be an object, got the class Bypass; write Bypass\(...\)"),
        (["bypass"], "stage 'mlp': a recipe must be an object with spec and build, such as .* got 'bypass'"),
        ({"mlp": Bypass()}, "stage 'mlp': recipes must be a list of them, got Bypass"),
        ([], "no stage has any block but the teacher's, so there is nothing to search: no recipe is given"),
        ([Separable()], "nothing to search: separable needs a convolution"),
    ],
)
def test_what_is_no_recipe_or_leaves_nothing_to_search_is_refused(graph: CutModel, recipes: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        offer(graph, recipes, X)


def test_a_users_block_of_another_shape_offered_to_all_says_how_to_leave_it_out(graph: CutModel) -> None:
    with pytest.raises(ContractError, match="raise DoesNotFit in its build, or set `optional = True`"):
        offer(graph, [Line(5)], X)
