import itertools

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from nas.blocks.contract import check_recipes
from nas.errors import DoesNotFit, InputError
from nas.graph import StageGraph, call_step
from nas.spaces.tocsr import units
from nas.spaces.tocsr.library import library
from nas.spaces.tocsr.recipes import StageRecipe
from nas.spaces.tocsr.stages import UpStage
from nas.spaces.tocsr.unet import example_inputs, unet_graph


@pytest.fixture
def graph(unet: UNet2DConditionModel) -> StageGraph:
    return unet_graph(unet)


def test_every_recipe_of_the_default_library_keeps_the_contract_on_odd_sizes(unet: UNet2DConditionModel, graph: StageGraph) -> None:
    stages = library(graph)
    check_recipes(graph, [(stage, choice) for stage in stages for choice in stage.choices[1:]], example_inputs(unet, (13, 9), tokens=5))


def test_every_recipe_of_the_wide_library_computes_what_is_read_downstream_and_shares_nothing(unet: UNet2DConditionModel, graph: StageGraph) -> None:
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    owned = {id(p) for p in unet.parameters()}
    passed: dict[str, tuple[tuple[Tensor, ...], tuple[Tensor, ...]]] = {}
    with torch.no_grad():
        graph.run(example_inputs(unet, (13, 9), tokens=5), observe=lambda step, read, written: passed.update({step.name: (read, written)}))
    for stage in library(graph, "wide"):
        read, expected = passed[stage.name]
        for choice in stage.choices[1:]:
            assert choice.recipe is not None
            block = choice.recipe.build(graph[stage.name].module)
            assert owned.isdisjoint(id(p) for p in block.parameters())
            assert all(p.requires_grad for p in block.parameters())
            with torch.no_grad():
                written = call_step(graph[stage.name], block, read)
            assert [value.shape for value in written] == [value.shape for value in expected]
            assert all(value.isfinite().all() for value in written)
    assert all(torch.equal(value, before[name]) for name, value in unet.state_dict().items())


def test_surrogates_start_nearer_to_the_teacher_than_random_ones_do(shallow: UNet2DConditionModel) -> None:
    graph = unet_graph(shallow)
    passed: dict[str, tuple[tuple[Tensor, ...], tuple[Tensor, ...]]] = {}
    with torch.no_grad():
        graph.run(example_inputs(shallow, 16, tokens=5), observe=lambda step, read, written: passed.update({step.name: (read, written)}))

    def error(stage: str, block: nn.Module) -> float:
        read, expected = passed[stage]
        with torch.no_grad():
            written = call_step(graph[stage], block, read)
        return sum(float((a - b).square().mean() / b.var()) for a, b in zip(written, expected, strict=True))

    nearer = []
    for stage in library(graph):
        for choice in stage.choices[1:]:
            assert choice.recipe is not None
            block = choice.recipe.build(graph[stage.name].module)
            inherited = error(stage.name, block)
            for part in block.modules():
                if isinstance(part, nn.Conv2d | nn.Linear | nn.GroupNorm | nn.LayerNorm):
                    part.reset_parameters()
            nearer.append(inherited < error(stage.name, block))
    assert sum(nearer) > 0.8 * len(nearer)


def test_recipes_are_read_back_from_their_spec(graph: StageGraph) -> None:
    for stage in library(graph, "wide"):
        for choice in stage.choices[1:]:
            assert isinstance(choice.recipe, StageRecipe)
            assert StageRecipe.of(choice.recipe.spec) == choice.recipe


def test_removal_inherits_the_first_and_the_last_layer_of_an_up_stage(deep: UNet2DConditionModel) -> None:
    teacher = unet_graph(deep)["up1"].module
    block = StageRecipe(("RA", "RA")).build(teacher)
    assert isinstance(block, UpStage)
    assert block.takes == ((0,), (2,))
    for kept, index in zip(block.layers, (0, 2), strict=True):
        original = teacher.layers[index]
        assert all(torch.equal(a, b) for a, b in zip(kept[0].parameters(), original[0].parameters(), strict=True))


def test_removal_in_a_down_stage_writes_the_last_output_for_missing_skips(deep: UNet2DConditionModel) -> None:
    graph = unet_graph(deep)
    block = StageRecipe(("R",)).build(graph["down1"].module)
    h, temb, text = torch.randn(1, 16, 8, 8), torch.randn(1, 64), torch.randn(1, 3, 24)
    first, second, _ = block(h, temb, text)
    assert torch.equal(first, second)
    assert torch.equal(first, graph["down1"].module.layers[0][0](h, temb))


def test_self_attention_unit_equals_a_transformer_without_its_other_parts(deep: UNet2DConditionModel) -> None:
    transformer = unet_graph(deep)["mid"].module.layers[0][1]
    block = transformer.transformer_blocks[0]
    unit = units.SelfAttention2D(transformer)
    for layer in (block.attn2.to_out[0], block.ff.net[2]):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    x, text = torch.randn(2, 32, 3, 5), torch.randn(2, 4, 24)
    torch.testing.assert_close(unit(x)[0], transformer(x, encoder_hidden_states=text, return_dict=False)[0])


def test_separable_convolution_is_exact_where_the_kernels_have_rank_one() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(5, 7, 3, stride=2, padding=1)
    with torch.no_grad():
        conv.weight.copy_(torch.randn(7, 5, 1, 1) * torch.randn(1, 5, 3, 3))
    x = torch.randn(2, 5, 9, 8)
    torch.testing.assert_close(units.SeparableConv2d.of(conv)(x), conv(x), atol=1e-5, rtol=1e-5)


def test_bottleneck_keeps_the_channels_that_weigh_most() -> None:
    torch.manual_seed(0)
    source = unet_resnet(16, 8)
    with torch.no_grad():
        source.conv2.weight[:, ::2] *= 0.01
    narrow = units.bottleneck(source, 2)
    assert torch.equal(narrow.conv1.weight, source.conv1.weight[1::2])
    assert torch.equal(narrow.conv2.weight, source.conv2.weight[:, 1::2])
    assert torch.equal(narrow.time_emb_proj.bias, source.time_emb_proj.bias[1::2])
    assert narrow.norm2.num_channels // narrow.norm2.num_groups == source.norm2.num_channels // source.norm2.num_groups


def test_merged_block_and_projection_start_from_the_straight_path_of_a_row_of_blocks() -> None:
    torch.manual_seed(0)
    row = [unet_resnet(16, 8), unet_resnet(14, 8), unet_resnet(8 + 4, 8)]
    for block in row:
        nn.init.zeros_(block.conv2.weight)
        nn.init.zeros_(block.conv2.bias)
    h, temb, skips = torch.randn(1, 16, 4, 4), torch.randn(1, 12), [torch.randn(1, 6, 4, 4), torch.randn(1, 4, 4, 4)]
    expected = row[0](h, temb)
    for block, skip in zip(row[1:], skips, strict=True):
        expected = block(torch.cat([expected, skip], 1), temb)
    merged = units.merged(row)
    together = torch.cat([h, *skips], 1)
    torch.testing.assert_close(merged(together, temb), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(units.projection(merged)(together, temb), expected, atol=1e-5, rtol=1e-5)


def test_narrow_transformer_keeps_whole_heads_and_the_gates_half_of_the_mlp(deep: UNet2DConditionModel) -> None:
    source = unet_graph(deep)["mid"].module.layers[0][1]  # 4 heads of 8 channels
    with torch.no_grad():
        source.proj_out.weight[:, 8:24] *= 0.01
    narrow = units.narrow_transformer(source, 2, plain_mlp=True)
    keep = [*range(8), *range(24, 32)]
    new, old = narrow.transformer_blocks[0], source.transformer_blocks[0]
    assert narrow.config.num_attention_heads == 2
    assert torch.equal(new.attn1.to_q.weight, old.attn1.to_q.weight[keep][:, keep])
    assert torch.equal(new.attn2.to_k.weight, old.attn2.to_k.weight[keep])
    assert new.ff.net[0].proj.weight.shape == (64, 16)
    assert torch.equal(new.ff.net[0].proj.weight[0], old.ff.net[0].proj.weight[128][keep])


@pytest.mark.parametrize(
    ("stage", "recipe", "reason"),
    [
        ("down0", StageRecipe(("S",)), "which has none"),
        ("down0", StageRecipe(("R",)), "is the whole stage"),
        ("down0", StageRecipe(("R", "R")), "has 2 layers, the stage only 1"),
        ("down2", StageRecipe((), "plain"), "got 16 and 32"),
        ("down2", StageRecipe(("A",)), "got 16 and 32"),
        ("down3", StageRecipe(("B2",), "plain"), "the stage has none"),
        ("down2", StageRecipe(("R",), merge=True), "which only up stages read"),
        ("up2", StageRecipe((), "plain"), "got 32 and 16"),
        ("mid", StageRecipe(("R", "B3")), "multiple of 3 channels, got 32"),
        ("mid", StageRecipe(("Ra3f", "R")), "multiples of 3, got 4 x 8"),
    ],
)
def test_recipe_that_makes_no_sense_for_a_stage_does_not_fit(shallow: UNet2DConditionModel, stage: str, recipe: StageRecipe, reason: str) -> None:
    with pytest.raises(DoesNotFit, match=reason):
        recipe.build(unet_graph(shallow)[stage].module)


@pytest.mark.parametrize(
    ("layers", "options", "reason"),
    [
        (("RX",), {}, "a layer must read like 'RA'.*got 'RX'"),
        (("",), {}, "got ''"),
        (("B0",), {}, "got 'B0'"),
        (("Ra0f",), {}, "got 'Ra0f'"),
        (("R",), {"sampler": "plan"}, "unknown sampler 'plan'; did you mean 'plain'"),
        (("R", "R"), {"merge": True}, "has one layer, got 2"),
    ],
)
def test_recipe_that_cannot_be_read_is_refused(layers: tuple[str, ...], options: dict[str, object], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        StageRecipe(layers, **options)  # type: ignore[arg-type]


def test_spec_with_other_keys_is_refused() -> None:
    with pytest.raises(InputError, match="must have the keys layers, sampler, merge, got layers, pool"):
        StageRecipe.of({"layers": ["R"], "pool": True})


def test_recipe_names_tell_recipes_apart() -> None:
    texts = ["R", "RA", "B2", "D", "P"]
    rows = [(row, n == 1) for n in (1, 2) for row in itertools.product(texts, repeat=n)]
    recipes = [StageRecipe(row, sampler, merge) for row, single in rows for sampler in ("keep", "plain") for merge in {False, single}]
    assert len({recipe.name for recipe in recipes}) == len(set(recipes))


def test_surrogate_is_on_the_teachers_device_type_and_mode(deep: UNet2DConditionModel) -> None:
    teacher = unet_graph(deep.to(torch.bfloat16).train())["up1"].module
    block = StageRecipe(("B4a2f",), "separable", merge=True).build(teacher)
    assert {p.dtype for p in block.parameters()} == {torch.bfloat16}
    assert block.training


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"use_linear_projection": True, "transformer_layers_per_block": 2},
        {"resnet_time_scale_shift": "scale_shift", "resnet_skip_time_act": True, "resnet_out_scale_factor": 2.0},
        {"downsample_padding": 0, "attention_head_dim": 3, "block_out_channels": (24, 24, 24, 24), "upcast_attention": True},
    ],
    ids=["linear projections", "scale and shift", "unpadded"],
)
def test_recipes_follow_the_teachers_configuration(deep: UNet2DConditionModel, changes: dict[str, object]) -> None:
    config = {key: value for key, value in deep.config.items() if not key.startswith("_")}
    teacher = UNet2DConditionModel(**{**config, **changes}).eval()
    graph, inputs = unet_graph(teacher), example_inputs(teacher, 16, tokens=3)
    check_recipes(graph, [(stage, choice) for stage in library(graph) for choice in stage.choices[1:]], inputs)
    with torch.no_grad():
        assert torch.equal(graph.run(inputs), teacher(inputs["sample"], inputs["timestep"], inputs["text"]).sample)
        for stage, layer in (("down0", "B2a2f"), ("mid", "RS"), ("up3", "B4a2")):
            block = StageRecipe((layer,), merge=stage == "up3").build(graph[stage].module)
            assert graph.run(inputs, {stage: block}).isfinite().all()


def unet_resnet(in_channels: int, out_channels: int) -> units.ResnetBlock2D:
    torch.manual_seed(in_channels)
    return units.ResnetBlock2D(in_channels=in_channels, out_channels=out_channels, temb_channels=12, groups=2, use_in_shortcut=True)
