"""The choices of every stage: recipes tried on each, those that do not fit left out with their reason."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from torch import nn

from nas.arguments import shown
from nas.blocks.building import build_block
from nas.blocks.contract import Passed, check_written, passed_on_meta, without_weights
from nas.blocks.recipe import BlockRecipe
from nas.blocks.reductions.attention import FewerHeads, NoAttention, PooledAttention, SharedAttention
from nas.blocks.reductions.convolutions import Bottleneck, Separable
from nas.blocks.reductions.depth import Bypass, FewerLayers
from nas.blocks.reductions.low_rank import LowRank
from nas.blocks.reductions.widths import Channels, FeedForward
from nas.errors import ContractError, DoesNotFit, InputError, did_you_mean
from nas.graph import StageGraph, Step, Values
from nas.space import TEACHER, Choice, Recipe, Stage

Offer = Sequence[Recipe | Choice] | Mapping[str, Sequence[Recipe | Choice]]
"""Recipes for every stage, or for each stage by name."""

GENERIC: tuple[BlockRecipe, ...] = (
    LowRank(0.5), LowRank(0.25), LowRank(0.1), Channels(0.5), Channels(0.25), FeedForward(0.5), FeedForward(0.25), Separable(), Bottleneck(0.25),
    FewerHeads(0.5), SharedAttention(), PooledAttention(4), NoAttention(), FewerLayers(0.5), Bypass(),
)  # fmt: skip
"""What is offered where nothing is said."""


_SHOWN = 12
"""Stages that one line names."""


class Offered(NamedTuple):
    """Stages with their choices; a line on how many recipes fit, and warnings; stage -> choice that was left out -> why."""

    stages: tuple[Stage, ...]
    notes: tuple[str, ...]
    left_out: Mapping[str, Mapping[str, str]]


def offer(graph: StageGraph, recipes: Offer | None, inputs: Values, stages: Iterable[str] | None = None) -> Offered:
    """The stages with their choices, and what was left out or is larger than the teacher.

    Args:
        graph: the teacher.
        recipes: see `Offer`; None is `GENERIC`.
        inputs: graph inputs of one forward pass.
        stages: names of the steps to search; by default all that have a layout (those that `cut` made).

    Raises:
        InputError: what is given is no recipe, or no stage has a surrogate block.
        DoesNotFit: a recipe given for a stage by name cannot be applied to it.
        ContractError: a recipe that is not `optional` makes a block that writes something else than the teacher's.
    """
    names = list(stages) if stages is not None else [step.name for step in graph.steps if step.layout is not None]
    given: Offer = GENERIC if recipes is None else recipes
    if isinstance(given, Mapping):
        for name in given:
            if name not in names:
                raise InputError(f"recipes are given for stage '{name}', which the space lacks{did_you_mean(name, names)}")
    passed = passed_on_meta(graph, inputs)
    notes: list[str] = []
    made = []
    reasons: dict[str, dict[str, str]] = {}
    for name in names:
        by_name = isinstance(given, Mapping)
        listed = _checked(name, given.get(name, ()) if isinstance(given, Mapping) else given)
        choices, left_out = _fitting(graph[name], listed, passed, notes, must_fit=by_name)
        made.append(Stage(name, (Choice(TEACHER), *choices)))
        if left_out:
            reasons[name] = left_out
    if recipes is not None:  # not of each reduction that is tried unasked
        notes += _useless_lines(reasons, len(names))
    if reasons:  # the same recipes were offered to all stages
        notes.append(_fitting_line({stage.name: len(stage.choices) - 1 for stage in made}, len(given)))
    if all(len(stage.choices) == 1 for stage in made):
        why = next(iter(next(iter(reasons.values())).values())) if reasons else "no recipe is given"
        raise InputError(f"no stage has any block but the teacher's, so there is nothing to search: {why}")
    return Offered(tuple(made), tuple(notes), reasons)


def _useless_lines(reasons: Mapping[str, Mapping[str, str]], n_stages: int) -> list[str]:
    """A line on every recipe that fits no stage, with its reason at the first."""
    first = next(iter(reasons.items()), ("", {}))
    everywhere = [choice for choice in first[1] if len(reasons) == n_stages and all(choice in left_out for left_out in reasons.values())]
    at = f" (at {first[0]})" if n_stages > 1 else ""
    return [f"warning: recipe '{choice}' fits no stage: {first[1][choice].removeprefix(f'{choice} ')}{at}" for choice in everywhere]


def _fitting_line(counts: Mapping[str, int], offered: int) -> str:
    """How many of the offered recipes fit each stage, on one line."""
    shown = [f"{stage} {count}" for stage, count in list(counts.items())[:_SHOWN]]
    more = f", {len(counts) - _SHOWN} more stages {min(list(counts.values())[_SHOWN:])} or more" if len(counts) > _SHOWN else ""
    return f"recipes that fit, of {offered}: {', '.join(shown)}{more}; `nas spaces show SPACE` says why the others do not"


def _checked(stage: str, recipes: Sequence[Recipe | Choice]) -> Sequence[Recipe | Choice]:
    """The recipes themselves, if all are."""
    if isinstance(recipes, str | Recipe | Choice) or not isinstance(recipes, Sequence):
        raise InputError(f"stage '{stage}': recipes must be a list of them, got {shown(recipes)}")
    for recipe in recipes:
        if isinstance(recipe, type):
            raise InputError(f"stage '{stage}': a recipe must be an object, got the class {recipe.__name__}; write {recipe.__name__}(...)")
        if not isinstance(recipe, Recipe | Choice):
            raise InputError(
                f"stage '{stage}': a recipe must be an object with spec and build, such as LowRank(0.5), got {recipe!r}; `nas blocks` lists classes"
            )
    return recipes


def _fitting(step: Step, recipes: Sequence[Recipe | Choice], passed: Passed, notes: list[str], *, must_fit: bool) -> tuple[list[Choice], dict[str, str]]:
    """The choices whose recipes fit, and the others' names with their reasons."""
    skeleton = without_weights(step.module)
    before = _size(skeleton)
    choices: list[Choice] = []
    left_out: dict[str, str] = {}
    for recipe in recipes:
        choice = recipe if isinstance(recipe, Choice) else Choice(choice_name(recipe), recipe)
        try:
            after = _size(_tried(step, choice, skeleton, passed))
        except DoesNotFit as error:
            reason = _reason(choice, error)
            if must_fit:
                which = "" if reason.startswith(f"{choice.name} ") else f", choice '{choice.name}'"
                raise DoesNotFit(f"stage '{step.name}'{which}: {reason}") from error
            left_out[choice.name] = reason
            continue
        except ContractError as error:
            hint = "; for a recipe that fits some stages only, raise DoesNotFit in its build, or set `optional = True` in its class"
            raise ContractError(f"{error}{'' if must_fit else hint}") from error
        if after > before:
            notes.append(f"warning: block '{step.name}/{choice.name}' has {after:,} parameters, the teacher's only {before:,}")
        choices.append(choice)
    return choices, left_out


def _reason(choice: Choice, error: DoesNotFit) -> str:
    """Why a recipe does not fit, told of the choice's name where the recipe told it of its own."""
    own, reason = choice_name(choice.recipe) if choice.recipe else "", str(error)
    return choice.name + reason.removeprefix(own) if reason.startswith(f"{own} ") else reason


def choice_name(recipe: Recipe) -> str:
    """The recipe's own name, or one made from its spec."""
    name = getattr(recipe, "name", None)
    return str(name) if name else "-".join(str(value) for key, value in recipe.spec.items() if key != "code")


def _tried(step: Step, choice: Choice, skeleton: nn.Module, passed: Passed) -> nn.Module:
    """The block without weights, proven to write what the teacher's writes."""
    if choice.recipe is None:
        raise InputError(f"choice '{step.name}/{choice.name}' has no recipe; choice '{TEACHER}' is there anyway")
    block = build_block(choice.recipe, skeleton, f"{step.name}/{choice.name}")
    reads, writes = passed[step.name]
    if isinstance(choice.recipe, BlockRecipe):
        choice.recipe.check(reads, writes)
    try:
        check_written(step, choice.name, block, reads, writes)
    except ContractError as error:
        if getattr(choice.recipe, "optional", False):
            raise DoesNotFit(f"{choice.name} does not fit: {error}") from error
        raise
    return block


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
