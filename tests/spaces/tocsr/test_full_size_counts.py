"""Numbers of TOC-SR, BK-SDM and NanoSD at SD1.5's size; all on the meta device."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from nas.evaluators.costs import count_macs, count_params
from nas.spaces.tocsr import counts
from nas.spaces.tocsr.compact import CompactUNet
from nas.spaces.tocsr.counts import count_near, count_params_without_groupnorm, full_size_table, sd15_unet
from nas.spaces.tocsr.library import bk_sdm_designs, library
from nas.spaces.tocsr.recipes import StageRecipe
from nas.spaces.tocsr.unet import example_inputs, unet_graph

METRICS = ("params", "params_without_groupnorm", "macs", "macs_with_attention")


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    home = tmp_path_factory.mktemp("counts")
    return {name: full_size_table(name, home) for name in ("default", "wide")}


@pytest.mark.parametrize(("channels", "params", "without_groupnorm"), [(4, 859_520_964, 859_395_524), (16, 859_590_096, 859_464_656)])
def test_parameters_of_table_s4_with_and_without_group_normalisation(channels: int, params: int, without_groupnorm: int) -> None:
    unet = sd15_unet(channels)
    assert (count_params(unet), count_params_without_groupnorm(unet)) == (params, without_groupnorm)


def conv(i: int, o: int) -> int:
    return 9 * i * o + o


@pytest.mark.parametrize(
    ("variant", "convolutions", "millions"),
    [
        ("base", [(4, 320), (320, 4)], 859.395),
        ("v1", [(16, 4), (4, 320), (320, 16)], 859.43),
        ("v2", [(16, 320), (320, 16)], 859.46),
        ("v3", [(16, 8), (8, 4), (4, 320), (320, 4), (4, 8), (8, 16)], 859.398),
    ],
)
def test_the_four_rows_of_table_s4(variant: str, convolutions: list[tuple[int, int]], millions: float) -> None:
    body = 859_395_524 - conv(4, 320) - conv(320, 4)
    total = (body + sum(conv(*widths) for widths in convolutions)) / 1e6
    digits = len(str(millions).split(".")[1])
    assert math.floor(total * 10**digits) / 10**digits == millions, variant


def test_teachers_macs_agree_to_the_integer(tables: dict[str, dict[str, Any]]) -> None:
    teacher = tables["default"]["teacher"]
    assert teacher["macs"] == 338_893_701_120
    assert teacher["macs_with_attention"] == 401_919_836_160


def test_whole_model_counted_at_once_equals_the_sum_of_its_stages() -> None:
    unet = sd15_unet()
    inputs = example_inputs(unet, 64)
    macs = count_macs(unet, (inputs["sample"], inputs["timestep"], inputs["text"]))
    assert (macs.linear, macs.attention) == (338_893_701_120, 63_026_135_040)


def by_hand() -> tuple[int, int]:
    """Multiply-adds of SD1.5's U-Net with 16 latent channels, written out from its architecture: convolutions and linear layers, attention's products."""
    linear = attention = 0
    time, text, tokens = 1280, 768, 77

    def residual(i: int, o: int, side: int) -> None:
        nonlocal linear
        linear += side**2 * (9 * i * o + 9 * o * o + (i * o if i != o else 0)) + time * o

    def transformer(c: int, side: int) -> None:
        nonlocal linear, attention
        n = side**2
        in_and_out, self_attention, cross_attention = 2 * c * c * n, 4 * c * c * n, 2 * c * c * n + 2 * text * c * tokens
        linear += in_and_out + self_attention + cross_attention + (8 + 4) * c * c * n
        attention += 2 * c * n * n + 2 * c * n * tokens

    linear += 320 * time + time * time + 64**2 * 9 * (16 * 320 + 320 * 16)
    widths, skips, side, h = (320, 640, 1280, 1280), [320], 64, 320
    for level, width in enumerate(widths):
        for _ in range(2):
            residual(h, width, side)
            h = width
            if level < 3:
                transformer(h, side)
            skips.append(h)
        if level < 3:
            side //= 2
            linear += side**2 * 9 * h * h
            skips.append(h)
    residual(h, h, side)
    transformer(h, side)
    residual(h, h, side)
    for level, width in reversed(list(enumerate(widths))):
        for _ in range(3):
            residual(h + skips.pop(), width, side)
            h = width
            if level < 3:
                transformer(h, side)
        if level:
            side *= 2
            linear += side**2 * 9 * h * h
    return linear, attention


def test_a_count_by_hand_agrees_to_the_integer() -> None:
    assert by_hand() == (338_893_701_120, 63_026_135_040)


@pytest.mark.slow
def test_both_counters_agree_on_real_tensors_at_full_size() -> None:
    unet = sd15_unet().to_empty(device="cpu")
    inputs = example_inputs(unet, 64)
    macs = count_macs(unet, (inputs["sample"], inputs["timestep"], inputs["text"]))  # raises where fvcore and torch differ
    assert (macs.linear, macs.attention) == by_hand()


@pytest.mark.parametrize("seed", range(3))
def test_random_assemblies_cost_what_their_stages_sum_to(tables: dict[str, dict[str, Any]], seed: int) -> None:
    unet, random = sd15_unet(), np.random.default_rng(seed)
    graph, table = unet_graph(unet), tables["wide"]
    chosen = {stage.name: (stage, int(random.integers(len(stage.choices)))) for stage in library(graph, "wide")}
    recipes = {name: stage.choices[k].recipe for name, (stage, k) in chosen.items()}
    blocks = {name: (recipe, recipe.build(graph[name].module)) for name, recipe in recipes.items() if recipe is not None}
    model = CompactUNet.assemble(unet, blocks)  # type: ignore[arg-type]  # the library's recipes are StageRecipes
    inputs = example_inputs(unet, 64)
    macs = count_macs(model, (inputs["sample"], inputs["timestep"], inputs["text"]))
    entries = [next(s for s in table["stages"] if s["name"] == name)["choices"][k] for name, (_, k) in chosen.items()]
    total = {metric: table["fixed"][metric] + sum(entry[metric] for entry in entries) for metric in METRICS}
    assert total["params"] == count_params(model)
    assert total["params_without_groupnorm"] == count_params_without_groupnorm(model)
    assert (total["macs"], total["macs_with_attention"]) == (macs.linear, macs.linear + macs.attention)


def test_pure_removal_without_the_innermost_stages_bottoms_out_at_121_million() -> None:
    """One residual unit a stage that can stand alone there, nothing sampled down into what is gone."""
    graph = unet_graph(sd15_unet())
    kept = {"down0": 0, "down1": 0, "down2": 0, "up1": 2, "up2": 0, "up3": 0}  # up1 hands on the width it reads, so its cheapest layer can stay
    stages: dict[str, Any] = {step.name: step.module for step in graph.steps}
    units = sum(count_params(stages[name].layers[layer][0]) for name, layer in kept.items())
    samplers = sum(count_params(stages[name].sampler) for name in ("down0", "down1", "up1", "up2"))
    fixed = sum(count_params(stages[name]) for name in ("time", "conv_in", "out"))
    assert units + samplers + fixed == 120_764_496


def test_reduction_of_the_paper_fits_latents_of_96_without_attention_products() -> None:
    unet = sd15_unet()
    inputs = example_inputs(unet, 96)
    macs = count_macs(unet, (inputs["sample"], inputs["timestep"], inputs["text"]))
    assert round(macs.linear / 273e9, 1) == 2.8
    assert round((macs.linear + macs.attention) / 273e9, 1) == 3.9


def test_with_four_operations_an_element_of_layer_norm_the_teacher_costs_761_gmacs_at_96() -> None:
    """As thop counts: `count_normalization` is 2 an element, twice that with a scale and shift; group norms are none of its rules."""
    unet, elements = sd15_unet(), 0

    def add(module: torch.nn.Module, arguments: tuple[torch.Tensor, ...], _: object) -> None:
        nonlocal elements
        elements += arguments[0].numel()

    for module in unet.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.register_forward_hook(add)
    inputs = example_inputs(unet, 96)
    arguments = (inputs["sample"], inputs["timestep"], inputs["text"])
    linear = count_macs(unet, arguments).linear
    assert linear == 760_630_968_320
    assert round((linear + 4 * elements) / 1e9, 1) == 760.9


@pytest.mark.parametrize(
    ("stage", "params", "macs", "with_attention"),
    [
        ("down0", 10.524, 32.897, 54.775),
        ("down1", 36.819, 31.296, 34.182),
        ("down2", 139.992, 31.449, 31.885),
        ("down3", 62.277, 3.778, 3.778),
        ("mid", 97.038, 6.027, 6.050),
        ("up0", 162.241, 12.902, 12.902),
        ("up1", 258.331, 75.118, 75.772),
        ("up2", 71.413, 79.082, 83.412),
        ("up3", 18.811, 65.965, 98.783),
    ],
)
def test_stage_table(tables: dict[str, dict[str, Any]], stage: str, params: float, macs: float, with_attention: float) -> None:
    row = next(s for s in tables["wide"]["stages"] if s["name"] == stage)["choices"][0]
    assert row["name"] == "teacher"
    assert (round(row["params"] / 1e6, 3), round(row["macs"] / 1e9, 3), round(row["macs_with_attention"] / 1e9, 3)) == (params, macs, with_attention)


def test_fixed_part(tables: dict[str, dict[str, Any]]) -> None:
    fixed = tables["wide"]["fixed"]
    assert (round(fixed["params"] / 1e6, 3), round(fixed["macs"] / 1e9, 2)) == (2.144, 0.38)


def test_sizes_of_the_libraries(tables: dict[str, dict[str, Any]]) -> None:
    assert tables["default"]["n_candidates"] == 6**9
    assert tables["wide"]["n_candidates"] == 558_835_200
    assert sum(len(stage["choices"]) for stage in tables["wide"]["stages"]) == 87


def test_reach_of_the_wide_library(tables: dict[str, dict[str, Any]]) -> None:
    reach = tables["wide"]["reach"]
    assert reach["params"] == [34_946_896, 859_590_096]
    assert reach["macs_with_attention"] == [18_929_254_400, 401_919_836_160]


def test_the_papers_sizes_are_reachable_by_many_candidates(tables: dict[str, dict[str, Any]]) -> None:
    assert list(tables["wide"]["near"]) == ["130M", "146M", "161M", "173M"]
    assert all(100_000 < count < 1_000_000 for count in tables["wide"]["near"].values())
    assert all(count > 1_000 for count in tables["default"]["near"].values())


def test_table_has_the_documented_keys_and_adds_up(tables: dict[str, dict[str, Any]]) -> None:
    for table in tables.values():
        assert {"scale", "stages", "fixed", "teacher", "n_candidates"} <= table.keys()
        for metric in METRICS:
            assert table["teacher"][metric] == table["fixed"][metric] + sum(stage["choices"][0][metric] for stage in table["stages"])


BASE = {
    **{f"down{i}": StageRecipe(("RA",)) for i in range(3)},
    **{f"up{i}": StageRecipe(("RA", "RA")) for i in (1, 2, 3)},
    "down3": StageRecipe(("R",)),
    "up0": StageRecipe(("R", "R")),
}
GONE = StageRecipe((), "plain")
SMALL = {**BASE, "mid": GONE}
TINY = {**SMALL, "down2": StageRecipe(("RA",), "plain"), "down3": GONE, "up0": GONE}


@pytest.mark.parametrize(
    ("recipes", "millions", "gmacs"),
    [(BASE, 579.385, 223.67), (SMALL, 482.347, 217.65), (TINY, 323.385, 204.95)],
    ids=["Base", "Small", "Tiny"],
)
def test_removal_variants_reproduce_bk_sdm(recipes: dict[str, StageRecipe], millions: float, gmacs: float) -> None:
    unet = sd15_unet(4)
    graph = unet_graph(unet)
    model = CompactUNet.assemble(unet, {stage: (recipe, recipe.build(graph[stage].module)) for stage, recipe in recipes.items()})
    inputs = example_inputs(unet, 64)
    macs = count_macs(model, (inputs["sample"], inputs["timestep"], inputs["text"]))
    assert (round(count_params(model) / 1e6, 3), round(macs.linear / 1e9, 2)) == (millions, gmacs)


@pytest.mark.slow
def test_nanosd_has_attention_on_or_off_in_the_reduced_network(tmp_path: Path) -> None:
    table = full_size_table("nanosd", tmp_path)
    sizes = {stage["name"]: len(stage["choices"]) for stage in table["stages"]}
    assert sizes == {"down0": 4, "down1": 4, "down2": 4, "down3": 1, "mid": 1, "up0": 1, "up1": 8, "up2": 8, "up3": 8}
    assert table["n_candidates"] == 32_768
    assert {stage["choices"][0]["params"] for stage in table["stages"] if stage["name"] in ("down3", "mid", "up0")} == {0}
    assert table["reach"]["params"] == [290_808_336, 523_286_736]


def test_counting_near_a_size_equals_brute_force() -> None:
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 50, size) for size in (3, 4, 2, 5, 3)]
    totals = [sum(pick) for pick in itertools.product(*rows)]
    assert count_near(rows, 90, 110) == sum(90 <= total <= 110 for total in totals)
    assert count_near(rows[:1], 0, 50) == 3


def test_table_is_counted_once_and_then_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    costs = dict.fromkeys(counts.METRICS, 1)
    table = {"scale": "sd15", "library": "wide", "stages": [], "fixed": costs, "teacher": costs, "n_candidates": 1, "reach": {}, "near": {}}
    counted: list[str] = []
    monkeypatch.setattr(counts, "_count", lambda name: counted.append(name) or table)
    assert full_size_table("wide", tmp_path) == full_size_table("wide", tmp_path) == table
    assert counted == ["wide"]
    (path,) = tmp_path.iterdir()
    path.write_text("not json")
    assert full_size_table("wide", tmp_path) == table
    assert counted == ["wide", "wide"]


def test_stock_network_is_built_without_weights() -> None:
    unet = sd15_unet()
    assert isinstance(unet, UNet2DConditionModel)
    assert all(parameter.is_meta for parameter in unet.parameters())


def test_bk_sdm_is_named_as_a_design_to_compare_with(tables: dict[str, dict[str, Any]]) -> None:
    stages = library(unet_graph(sd15_unet()), "wide")
    designs = {"BK-SDM Base": BASE, "BK-SDM Small": SMALL, "BK-SDM Tiny": TINY}
    assert bk_sdm_designs(stages) == {name: {stage: recipe.name for stage, recipe in recipes.items()} for name, recipes in designs.items()}
