"""Libraries: the choices of every stage, derived from the teacher's own structure by one list of recipes a kind of stage.

A recipe that does not fit a stage (attention that is not there, more layers than the teacher's) is left out, so the same lists
serve SD1.5 and small teachers whose stages have one layer or no attention.
"""

import contextlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import nn

from nas.blocks.contract import without_weights
from nas.errors import DoesNotFit, InputError, did_you_mean
from nas.evaluators.costs import count_params
from nas.graph import StageGraph, Step
from nas.space import TEACHER, Choice
from nas.space import Stage as SearchStage
from nas.spaces.tocsr.recipes import StageRecipe
from nas.spaces.tocsr.stages import DownStage, MidStage, Stage

LIBRARY_VERSION = "1"
"""Changes whenever a recipe's meaning does; part of exported architectures."""

DEFAULT_SURROGATES = 5
"""The default library keeps the first so many recipes that fit a stage: with the teacher six choices, 6^9 = 1.0e7 candidates."""

_ID = StageRecipe((), "plain")


def library(graph: StageGraph, name: str = "default") -> tuple[SearchStage, ...]:
    """The searchable stages of a U-Net graph with their choices, surrogates with the most parameters first.

    Args:
        graph: from `unet_graph`; for "nanosd" from `nanosd_graph`.
        name: "default" (about 6 choices a stage), "wide" (all recipes), or "nanosd" (attention on or off: 32,768 candidates at SD1.5).
    """
    if name not in _RECIPES:
        raise InputError(f"unknown library '{name}'{did_you_mean(name, _RECIPES)}")
    teachers = {step.name: step.module for step in graph.steps if isinstance(step.module, Stage)}
    lowest = max((key for key, stage in teachers.items() if isinstance(stage, DownStage) and stage.sampler is not None), default="")
    stages = []
    for key, teacher in teachers.items():
        skeleton = without_weights(teacher)
        recipes = sorted(_RECIPES[name](skeleton, key == lowest), key=lambda recipe: -count_params(recipe.build(skeleton)))
        stages.append(SearchStage(key, (Choice(TEACHER), *(Choice(recipe.name, recipe) for recipe in recipes))))
    return tuple(stages)


def nanosd_graph(graph: StageGraph) -> StageGraph:
    """The reduced network that NanoSD (arXiv 2601.09823) starts from: innermost stages handed through, nothing sampled down into them."""
    innermost = max(step.name for step in graph.steps if step.name.startswith("down"))
    above = f"down{int(innermost.removeprefix('down')) - 1}"

    def reduced(step: Step) -> Step:
        if step.name in (innermost, "mid", "up0"):
            return Step(step.name, step.reads, step.writes, _ID.build(step.module))
        if step.name == above and isinstance(step.module, DownStage) and step.module.sampler is not None:
            return Step(step.name, step.reads, step.writes, _without_sampler(step.module))
        return step

    return StageGraph(graph.inputs, tuple(reduced(step) for step in graph.steps), graph.output)


def _without_sampler(stage: DownStage) -> DownStage:
    """The stage on the same units with average pooling for its sampler."""
    return DownStage(stage.layers, nn.AvgPool2d(2, ceil_mode=True), stage.n_skips)


def bk_sdm_designs(stages: Sequence[SearchStage]) -> dict[str, dict[str, str]]:
    """BK-SDM's removals (arXiv 2305.15798) in the choices of these stages, name -> stage -> choice.

    Base leaves one layer out of every stage that has one to spare; Small drops the mid stage too, Tiny the innermost stages and their sampler.
    """
    known = {stage.name: [choice.name for choice in stage.choices] for stage in stages}

    def first(stage: str, *names: str) -> dict[str, str]:
        """The stage with the first of the names that is a choice of it, if any is."""
        found = [name for name in names if name in known.get(stage, ())]
        return {stage: found[0]} if found else {}

    base: dict[str, str] = {}
    for name in known:
        base |= first(name, *({"d": ("RA", "R"), "u": ("RARA", "RR", "catR")}.get(name[0], ())))
    small = base | first("mid", "id")
    tiny = small | first("down2", "RA+plain") | first("down3", "id") | first("up0", "id", "catP+plain")
    return {"BK-SDM Base": base, "BK-SDM Small": small, "BK-SDM Tiny": tiny}


@dataclass(frozen=True, slots=True)
class _Lists:
    """Recipes for one kind of stage: rows apart by blanks, layers by commas, `*` repeats to the teacher's number, `/` names the sampler.

    `shallow` rows join the wide list where the teacher has the least number of layers; `default` rows are in order of preference.
    """

    wide: str
    shallow: str
    default: str
    shallow_default: str


_LISTS = {
    "down": _Lists(
        wide="RS* R*,RA RA R* R Ra2f B2* B4a4f D/separable",
        shallow="B4 R/plain P/plain",
        default="RA R* Ra2f R D/separable",
        shallow_default="R P/plain B2 D/separable Ra2f RS B4",
    ),
    "down without attention": _Lists(
        wide="R B2 B4 D/separable id",
        shallow="D R/plain B4/separable P/plain",
        default="R B2 B4 D id",
        shallow_default="B2 P/plain D/separable B4 R/plain id",
    ),
    "mid": _Lists(
        wide="R,R R B4a4f,B4 B4 a4f id",
        shallow="B2 P",
        default="R,R R B4a4f,B4 B4 id",
        shallow_default="R,R R B4 P id",
    ),
    "up": _Lists(
        wide="RS* RA,RA R*,RA R* R,R R,Ra2f B2*,B2a2f B4* catR catB4a4f catD/separable",
        shallow="B2* catB2 catP/plain",
        default="RA,RA R* R,R catR catD/separable",
        shallow_default="R* catP/plain catR B2* catD/separable",
    ),
    "up without attention": _Lists(
        wide="R,R R B4 B4* catP id",
        shallow="B2* catR catB2 catD/separable catP/plain",
        default="R,R R B4* catP id",
        shallow_default="catR catP/plain B2* catD/separable B4* catB2",
    ),
}


def _kind(teacher: Stage) -> str:
    if isinstance(teacher, MidStage):
        return "mid"
    place = "down" if isinstance(teacher, DownStage) else "up"
    return place if any(attention is not None for _, attention in teacher.layers) else f"{place} without attention"


def _shallow(teacher: Stage) -> bool:
    """Whether the stage is of a network with one layer a block (up blocks have one more, the mid block reads alike)."""
    return len(teacher.layers) == (1 if isinstance(teacher, DownStage) else 2) and not isinstance(teacher, MidStage)


def _wide(teacher: Stage, lowest: bool) -> list[StageRecipe]:
    lists = _LISTS[_kind(teacher)]
    extra = (" RA/plain" if lowest and _kind(teacher) == "down" else "") + (" " + lists.shallow if _shallow(teacher) else "")
    return _fitting(teacher, lists.wide + extra)


def _default(teacher: Stage, lowest: bool) -> list[StageRecipe]:
    del lowest
    lists = _LISTS[_kind(teacher)]
    return _fitting(teacher, lists.shallow_default if _shallow(teacher) else lists.default)[:DEFAULT_SURROGATES]


def _attention_on_or_off(teacher: Stage, lowest: bool) -> list[StageRecipe]:
    del lowest
    rows = itertools.product(*(("RA", "R") if attention is not None else ("R",) for _, attention in teacher.layers))
    return [StageRecipe(row) for row in rows][1:]


_RECIPES: dict[str, Callable[[Stage, bool], list[StageRecipe]]] = {"default": _default, "wide": _wide, "nanosd": _attention_on_or_off}


def _fitting(teacher: Stage, rows: str) -> list[StageRecipe]:
    """The recipes of the rows that can be built for this stage; each once, in the rows' order."""
    fitting: list[StageRecipe] = []
    for row in rows.split():
        recipe = _read(row, len(teacher.layers))
        if teacher.sampler is None and recipe.layers:
            recipe = replace(recipe, sampler="keep")
        if recipe in fitting:
            continue
        with contextlib.suppress(DoesNotFit):
            recipe.build(teacher)
            fitting.append(recipe)
    return fitting


def _read(row: str, n: int) -> StageRecipe:
    """The recipe of a row for a stage of `n` layers."""
    text, _, sampler = row.partition("/")
    if text == "id":
        return _ID
    merge = text.startswith("cat")
    layers = text.removeprefix("cat").split(",")
    repeats = n - len(layers) + 1
    spread = [unit for layer in layers for unit in ([layer[:-1]] * repeats if layer.endswith("*") else [layer])]
    return StageRecipe(tuple(spread), sampler or "keep", merge)  # type: ignore[arg-type]  # checked by the recipe
