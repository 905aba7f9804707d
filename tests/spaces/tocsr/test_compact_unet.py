import copy
import json
import random
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nas.blocks.saved import load_model
from nas.errors import DamagedFile, InputError
from nas.spaces.tocsr.compact import CompactUNet, architecture_diff
from nas.spaces.tocsr.library import library
from nas.spaces.tocsr.recipes import StageRecipe
from nas.spaces.tocsr.unet import example_inputs, unet_graph

Blocks = dict[str, tuple[StageRecipe, nn.Module]]

WEIGHTS = "diffusion_pytorch_model.safetensors"

MIXED = {
    "down1": StageRecipe(("R",), "plain"),
    "down2": StageRecipe(("B2a2f",), "separable"),
    "mid": StageRecipe(("B4", "B2")),
    "up0": StageRecipe(("D",), merge=True),
    "up1": StageRecipe(("RS", "R")),
    "up3": StageRecipe(("P",), merge=True),
}


@pytest.fixture
def teacher(unet: UNet2DConditionModel, scheduler: dict[str, object]) -> CompactUNet:
    return CompactUNet.of(unet, scheduler)


@pytest.fixture
def blocks(teacher: CompactUNet) -> Blocks:
    return {name: (recipe, recipe.build(teacher.graph[name].module).eval()) for name, recipe in MIXED.items()}


@pytest.fixture
def compact(teacher: CompactUNet, blocks: Blocks) -> CompactUNet:
    return CompactUNet.assemble(teacher, blocks)


def output(model: nn.Module, size: int | tuple[int, int] = (13, 9)) -> Tensor:
    inputs = inputs_of(model, size)
    with torch.no_grad():
        eps: Tensor = model(inputs["sample"], inputs["timestep"], inputs["text"]).sample
    return eps


def inputs_of(model: nn.Module, size: int | tuple[int, int] = (13, 9)) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return example_inputs(model, size, tokens=5, batch=2)


def test_the_loader_of_own_models_says_who_loads_a_compact_unet(compact: CompactUNet, tmp_path: Path) -> None:
    compact.save_pretrained(tmp_path)
    (tmp_path / "architecture.json").write_text('{"library_version": "1", "stages": {}}')
    with pytest.raises(InputError, match=r"holds a CompactUNet; load it with nas\.spaces\.tocsr\.CompactUNet\.from_pretrained\('"):
        load_model(tmp_path, nn.Linear(2, 2))


def test_assembled_model_computes_what_the_graph_computes_with_these_blocks(teacher: CompactUNet, blocks: Blocks, compact: CompactUNet) -> None:
    with torch.no_grad():
        expected = teacher.graph.run(inputs_of(teacher), {name: block for name, (_, block) in blocks.items()})
    assert torch.equal(output(compact), expected)


def test_assembled_model_shares_all_parameters(unet: UNet2DConditionModel, blocks: Blocks, compact: CompactUNet) -> None:
    given = {id(p) for module in (unet, *(block for _, block in blocks.values())) for p in module.parameters()}
    assert {id(p) for p in compact.parameters()} <= given


def test_reloaded_model_equals_the_assembled_one_bit_for_bit(compact: CompactUNet, tmp_path: Path) -> None:
    compact.save_pretrained(tmp_path)
    loaded = CompactUNet.from_pretrained(tmp_path)
    assert loaded.state_dict().keys() == compact.state_dict().keys()
    assert torch.equal(output(loaded), output(compact))
    assert loaded.config.architecture == {name: recipe.spec for name, recipe in MIXED.items()}


def test_random_candidates_of_the_wide_library_survive_saving(teacher: CompactUNet, tmp_path: Path) -> None:
    rng = random.Random(0)
    stages = library(teacher.graph, "wide")
    for number in range(3):
        chosen = {stage.name: rng.choice(stage.choices) for stage in stages}
        recipes = {name: choice.recipe for name, choice in chosen.items() if isinstance(choice.recipe, StageRecipe)}
        blocks = {name: (recipe, recipe.build(teacher.graph[name].module)) for name, recipe in recipes.items()}
        model = CompactUNet.assemble(teacher, blocks)
        model.save_pretrained(tmp_path / str(number))
        assert torch.equal(output(CompactUNet.from_pretrained(tmp_path / str(number))), output(model))


def test_exported_teacher_loads_as_compact_and_as_stock_network(unet: UNet2DConditionModel, tmp_path: Path) -> None:
    CompactUNet.of(unet).save_pretrained(tmp_path)
    assert torch.equal(output(CompactUNet.from_pretrained(tmp_path)), output(unet))
    assert torch.equal(output(UNet2DConditionModel.from_pretrained(tmp_path)), output(unet))


def test_loading_never_allocates_the_teacher(compact: CompactUNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compact.save_pretrained(tmp_path)
    built_from: set[str] = set()
    build = StageRecipe.build

    def spy(recipe: StageRecipe, teacher: nn.Module) -> nn.Module:
        built_from.update(p.device.type for p in teacher.parameters())
        return build(recipe, teacher)

    monkeypatch.setattr(StageRecipe, "build", spy)
    CompactUNet.from_pretrained(tmp_path)
    assert built_from == {"meta"}


@pytest.mark.parametrize("damage", ["missing", "unexpected", "reshaped"])
def test_weights_that_do_not_fit_the_architecture_are_an_error(compact: CompactUNet, tmp_path: Path, damage: str) -> None:
    compact.save_pretrained(tmp_path)
    weights = load_file(tmp_path / WEIGHTS)
    if damage == "missing":
        del weights["up_blocks.1.resnets.0.conv1.weight"]
    elif damage == "unexpected":
        weights["up_blocks.1.resnets.7.conv1.weight"] = torch.zeros(1)
    else:
        weights["conv_in.bias"] = torch.zeros(3)
    save_file(weights, tmp_path / WEIGHTS)
    with pytest.raises(DamagedFile, match=r"missing keys|unexpected keys|expected shape"):
        CompactUNet.from_pretrained(tmp_path)


def test_model_of_another_library_version_is_refused(compact: CompactUNet, tmp_path: Path) -> None:
    compact.save_pretrained(tmp_path)
    edit(tmp_path / "config.json", library_version="0")
    with pytest.raises(InputError, match="is of library version 0, this toolkit builds"):
        CompactUNet.from_pretrained(tmp_path)


def test_architecture_with_an_unknown_stage_is_refused(compact: CompactUNet, tmp_path: Path) -> None:
    compact.save_pretrained(tmp_path)
    edit(tmp_path / "config.json", architecture={"down9": StageRecipe(("R",)).spec})
    with pytest.raises(InputError, match="names stage 'down9', the network has down0"):
        CompactUNet.from_pretrained(tmp_path)


def test_assembling_from_an_assembled_model_is_refused(compact: CompactUNet) -> None:
    with pytest.raises(InputError, match="assembled from its teacher"):
        CompactUNet.assemble(compact, {})


def test_teacher_folder_gives_the_noise_prediction(unet: UNet2DConditionModel, teacher: CompactUNet, scheduler: dict[str, object], tmp_path: Path) -> None:
    unet.save_pretrained(tmp_path / "unet")
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    loaded = CompactUNet.from_teacher_folder(tmp_path)
    assert torch.equal(output(loaded), output(teacher))
    assert not torch.equal(output(loaded), output(unet))


def test_teacher_folder_without_scheduler_is_refused(unet: UNet2DConditionModel, tmp_path: Path) -> None:
    unet.save_pretrained(tmp_path / "unet")
    with pytest.raises(InputError, match=r"scheduler_config\.json is missing or not a plain file"):
        CompactUNet.from_teacher_folder(tmp_path)


def test_teacher_folder_with_another_network_is_refused(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text('{"_class_name": "DiTTransformer2DModel"}')
    with pytest.raises(InputError, match="unet must be a UNet2DConditionModel, got DiTTransformer2DModel"):
        CompactUNet.from_teacher_folder(tmp_path)


def test_argument_that_the_graph_does_not_read_is_refused(compact: CompactUNet) -> None:
    inputs = inputs_of(compact)
    with pytest.raises(InputError, match="got class_labels"):
        compact(inputs["sample"], 3, inputs["text"], class_labels=torch.zeros(2))


def test_freeu_is_refused_rather_than_ignored(compact: CompactUNet) -> None:
    with pytest.raises(InputError, match="has no FreeU"):
        compact.enable_freeu(0.9, 0.2, 1.5, 1.6)


def test_timestep_may_be_a_number_and_the_result_a_tuple(compact: CompactUNet) -> None:
    inputs = inputs_of(compact)
    with torch.no_grad():
        (eps,) = compact(inputs["sample"], 500, encoder_hidden_states=inputs["text"], timestep_cond=None, return_dict=False)
    assert torch.equal(eps, output(compact))


def test_deepcopy_is_independent_and_equal(compact: CompactUNet) -> None:
    twin = copy.deepcopy(compact)
    expected = output(compact)
    with torch.no_grad():
        for parameter in compact.parameters():
            parameter.zero_()
    assert torch.equal(output(twin), expected)


def test_half_precision_runs_through_the_graph(compact: CompactUNet) -> None:
    expected, inputs = output(compact), inputs_of(compact)
    with torch.no_grad():
        half = compact.to(torch.bfloat16)(inputs["sample"].bfloat16(), inputs["timestep"], inputs["text"].bfloat16()).sample
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, atol=0.05, rtol=0.05)


def test_gradient_checkpointing_gives_the_same_gradients(compact: CompactUNet) -> None:
    def gradients() -> list[Tensor]:
        inputs = inputs_of(compact)
        compact.zero_grad()
        compact(inputs["sample"], 10, inputs["text"]).sample.square().mean().backward()
        return [p.grad.clone() for p in compact.parameters() if p.grad is not None]

    compact.train().requires_grad_(True)
    plain = gradients()
    compact.enable_gradient_checkpointing()
    assert compact.is_gradient_checkpointing
    for a, b in zip(gradients(), plain, strict=True):
        torch.testing.assert_close(a, b)


def test_attention_processors_reach_teacher_and_surrogate_stages(compact: CompactUNet) -> None:
    expected = output(compact)
    names = set(compact.attn_processors)
    assert {"down_blocks.2.attentions.0.transformer_blocks.0.attn1.processor", "up_blocks.1.attentions.0.attn1.processor"} <= names
    compact.set_attn_processor(AttnProcessor())
    assert {type(p) for p in compact.attn_processors.values()} == {AttnProcessor}
    torch.testing.assert_close(output(compact), expected, atol=1e-5, rtol=1e-5)


def test_diff_names_stage_units_and_parameters(shallow: UNet2DConditionModel) -> None:
    teacher = CompactUNet.of(shallow)
    recipe = StageRecipe(("B2",))
    text = architecture_diff(CompactUNet.assemble(teacher, {"mid": (recipe, recipe.build(teacher.graph["mid"].module))}))
    lines = {line.split()[0]: line.split() for line in text.splitlines()}
    assert lines["mid"] == ["mid", "RAR", "B2", "64,096", "10,400", "16.2", "%"]
    assert lines["down0"][1:3] == ["R", "="]
    assert lines["total"][1] == f"{sum(p.numel() for p in shallow.parameters()):,}"


@pytest.mark.slow
def test_compiles_as_one_graph(compact: CompactUNet) -> None:
    torch.compiler.reset()
    compiled = torch.compile(compact, fullgraph=True, backend="aot_eager")
    inputs = inputs_of(compact)
    with torch.no_grad():
        torch.testing.assert_close(compiled(inputs["sample"], inputs["timestep"], inputs["text"]).sample, output(compact), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_exports(compact: CompactUNet) -> None:
    inputs = inputs_of(compact)
    program = torch.export.export(compact, (inputs["sample"], inputs["timestep"], inputs["text"]), {"return_dict": False})
    with torch.no_grad():
        (eps,) = program.module()(inputs["sample"], inputs["timestep"], inputs["text"], return_dict=False)
    torch.testing.assert_close(eps, output(compact), atol=1e-5, rtol=1e-5)


def test_graph_of_a_compact_network_ends_with_its_noise_conversion(teacher: CompactUNet) -> None:
    assert unet_graph(teacher)["out"].reads == ("h", "sample", "timestep")


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_folder_that_is_not_there_is_said_at_once(tmp_path: Path) -> None:
    for missing in (tmp_path / "winner", "runs/tocsr_unet-XXXXXXXX/winner"):
        with pytest.raises(InputError, match=r"no model folder '.*winner'; a search writes one under its run"):
            CompactUNet.from_pretrained(missing)
