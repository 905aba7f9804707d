import math
from dataclasses import replace

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn

from nas.errors import InputError
from nas.evaluators.costs import count_costs, count_macs, count_params
from nas.graph import StageGraph
from nas.space import SearchSpace
from nas.spaces.tocsr.compact import CompactUNet
from nas.spaces.tocsr.library import library, nanosd_graph
from nas.spaces.tocsr.recipes import StageRecipe
from nas.spaces.tocsr.stages import DownStage
from nas.spaces.tocsr.unet import example_inputs, unet_graph

STAGES = [*(f"down{i}" for i in range(4)), "mid", *(f"up{i}" for i in range(4))]


@pytest.fixture
def graph(unet: UNet2DConditionModel) -> StageGraph:
    return unet_graph(unet)


@pytest.mark.parametrize("name", ["default", "wide"])
def test_every_stage_has_graded_choices_down_to_a_cheap_one(graph: StageGraph, name: str) -> None:
    stages = library(graph, name)
    assert [stage.name for stage in stages] == STAGES
    for stage in stages:
        teacher = graph[stage.name].module
        sizes = [count_params(c.recipe.build(teacher)) for c in stage.choices if c.recipe is not None]
        assert len(sizes) >= 4
        assert sizes == sorted(sizes, reverse=True)
        assert sizes[-1] < 0.2 * count_params(teacher) < sizes[0]


def test_default_library_has_about_six_choices_a_stage(graph: StageGraph) -> None:
    sizes = [len(stage.choices) for stage in library(graph)]
    assert max(sizes) == 6
    assert 1_000_000 <= math.prod(sizes) <= 20_000_000


def test_choices_of_a_stage_are_different_recipes(graph: StageGraph) -> None:
    for stage in library(graph, "wide"):
        assert len({c.recipe for c in stage.choices}) == len(stage.choices)


def test_shallow_teacher_gets_no_recipe_for_attention_or_layers_it_lacks(shallow: UNet2DConditionModel) -> None:
    for stage in library(unet_graph(shallow), "wide"):
        if stage.name in ("down0", "down1", "down3", "up0", "up2", "up3"):
            units = "".join("".join(c.recipe.layers) for c in stage.choices if isinstance(c.recipe, StageRecipe))
            assert not set(units) & set("ASa")


def test_unknown_library_names_the_nearest(graph: StageGraph) -> None:
    with pytest.raises(InputError, match="unknown library 'wid'; did you mean 'wide'"):
        library(graph, "wid")


def test_table_sum_equals_a_count_of_the_whole_model_for_random_candidates(unet: UNet2DConditionModel, graph: StageGraph) -> None:
    stages = tuple(replace(stage, choices=stage.choices[::3]) for stage in library(graph))
    blocks: dict[tuple[str, str], nn.Module] = {}
    recipes = {(stage.name, c.name): c.recipe for stage in stages for c in stage.choices if isinstance(c.recipe, StageRecipe)}
    for (stage, choice), recipe in recipes.items():
        blocks[stage, choice] = recipe.build(graph[stage].module)
    inputs = example_inputs(unet, 16, tokens=5)
    table, space = count_costs(graph, stages, blocks, inputs), SearchSpace("default", stages)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        candidate = tuple(int(torch.randint(size, (1,), generator=generator)) for size in space.sizes)
        names = [(stage, choice) for stage, choice in space.decode(candidate).items() if choice != "teacher"]
        model = CompactUNet.assemble(unet, {stage: (recipes[stage, choice], blocks[stage, choice]) for stage, choice in names})
        whole = count_macs(model, (inputs["sample"], inputs["timestep"], inputs["text"]))
        assert table.of(candidate) == {"params": count_params(model), "macs": whole.linear, "macs_with_attention": whole.linear + whole.attention}


def test_nanosd_starts_from_a_network_without_its_innermost_stages(deep: UNet2DConditionModel) -> None:
    reduced = nanosd_graph(unet_graph(deep))
    assert [count_params(reduced[name].module) for name in ("down3", "mid", "up0")] == [0, 0, 0]
    assert isinstance(reduced["down2"].module, DownStage)
    assert isinstance(reduced["down2"].module.sampler, nn.AvgPool2d)
    assert [len(stage.choices) for stage in library(reduced, "nanosd")] == [4, 4, 4, 1, 1, 1, 8, 8, 8]
    with torch.no_grad():
        assert reduced.run(example_inputs(deep, (13, 9), tokens=3)).isfinite().all()
