import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nas.blocks.recipe import BlockRecipe
from nas.blocks.reductions.depth import Bypass
from nas.blocks.reductions.low_rank import LowRank
from nas.blocks.reductions.widths import FeedForward
from nas.blocks.saved import library_free, load_graph, load_model, save_model
from nas.cut import CutModel, cut
from nas.data import Samples
from nas.errors import ContractError, DamagedFile, InputError
from nas.graph import StageGraph
from nas.layout import Template
from nas.space import Choice
from tests.conftest import Narrow, toy_graph

X = {"x": torch.randn(6, 8, generator=torch.Generator().manual_seed(0))}


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 8)
        self.kind = "plain"

    def forward(self, h: Tensor) -> tuple[Tensor, None]:
        return h + self.second(self.first(h).relu()), None


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(8, 8)
        self.layers = nn.ModuleList([Layer(), Layer()])
        self.head = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
        self.register_buffer("scale", torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for layer in self.layers:
            assert layer.kind == "plain"
            h, _ = layer(h)
        result: Tensor = self.head(h) * self.scale
        return result


def made(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net().eval()


def saved(folder: Path, **recipes: BlockRecipe) -> tuple[CutModel, Tensor]:
    """A saved model with these recipes' blocks (weights disturbed, as if calibrated), and its output."""
    graph = cut(made(), {"low": "layers.0", "high": "layers.1", "head": ["head.0", "head.1", "head.2"]}, Samples(X, torch.arange(6)))
    chosen = {}
    for stage, recipe in recipes.items():
        block = recipe.build(graph[stage].module).eval()
        for parameter in block.parameters():
            parameter.data.add_(0.1)
        chosen[stage] = Choice(recipe.name, recipe), block
    save_model(graph, chosen, folder)
    with torch.no_grad():
        return graph, graph.run(X, {stage: block for stage, (_, block) in chosen.items()})


def test_a_model_comes_back_exact_to_the_bit_on_a_fresh_instance(tmp_path: Path) -> None:
    _, want = saved(tmp_path, low=FeedForward(0.5), high=Bypass(), head=LowRank(0.5))
    model = load_model(tmp_path, made(seed=7))
    with torch.no_grad():
        assert torch.equal(model(X["x"]), want)
    architecture = json.loads((tmp_path / "architecture.json").read_text())
    assert architecture["stages"]["low"]["recipe"] == {"recipe": "feed_forward", "fraction": 0.5}
    assert architecture["stages"]["high"]["params"] == 0
    assert architecture["stages"]["head"]["modules"] == ["head.0", "head.1", "head.2"]


def test_a_person_can_read_what_differs_from_the_teacher(tmp_path: Path) -> None:
    saved(tmp_path, low=FeedForward(0.5), high=Bypass())
    lines = {line.split()[0]: line.split()[1:] for line in (tmp_path / "architecture.txt").read_text().splitlines()}
    assert lines["high"] == ["Layer", "bypass", "280", "0", "0.0", "%"]
    assert lines["head"] == ["Linear", "+", "ReLU", "+", "Linear", "=", "99", "99", "100.0", "%"]
    assert lines["total"] == ["731", "315", "43.1", "%"]


def test_the_teacher_itself_comes_back(tmp_path: Path) -> None:
    _, want = saved(tmp_path)
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path, made(seed=3))(X["x"]), want)


def test_saving_leaves_the_teacher_as_it_was(tmp_path: Path) -> None:
    graph, _ = saved(tmp_path, low=Bypass())
    with torch.no_grad():
        assert torch.equal(graph.model(X["x"]), made()(X["x"]))


def _change(folder: Path, change: Callable[[dict[str, Tensor]], Any], rehash: bool = True) -> None:
    import hashlib

    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")
    if rehash:
        path = folder / "architecture.json"
        content = json.loads(path.read_text()) | {"sha256": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()}
        path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("stem.bias"), "1 missing, such as 'stem.bias'"),
        (lambda w: w.update(more=torch.zeros(1)), "1 unexpected, such as 'more'"),
        (lambda w: w.update({"stem.bias": torch.zeros(3)}), "1 of another shape, such as 'stem.bias'"),
    ],
)
def test_every_missing_unexpected_or_misshapen_weight_is_refused(tmp_path: Path, change: Callable[[dict[str, Tensor]], Any], message: str) -> None:
    saved(tmp_path, low=FeedForward(0.5))
    _change(tmp_path, change)
    with pytest.raises(InputError, match=message):
        load_model(tmp_path, made())


def test_weights_that_the_architecture_does_not_vouch_for_are_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    _change(tmp_path, lambda w: w["scale"].add_(1), rehash=False)
    with pytest.raises(DamagedFile, match=r"model\.safetensors has another hash than architecture\.json says"):
        load_model(tmp_path, made())


@pytest.mark.parametrize("content", [b"", b"[]", b'{"format": "other"}'])
def test_an_architecture_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    saved(tmp_path)
    (tmp_path / "architecture.json").write_bytes(content)
    with pytest.raises(DamagedFile, match="cannot be read"):
        load_model(tmp_path, made())


def test_a_model_of_another_class_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, low=Bypass())
    with pytest.raises(InputError, match=r"stage 'low': the given Linear has no module 'layers\.0'"):
        load_model(tmp_path, nn.Linear(8, 3))


@dataclass(frozen=True)
class Unregistered(BlockRecipe):
    def build(self, teacher: nn.Module) -> nn.Module:
        return nn.Linear(8, 8)


def test_a_recipe_that_is_not_registered_is_asked_for_and_may_be_given(tmp_path: Path) -> None:
    _, want = saved(tmp_path, low=Unregistered())
    with pytest.raises(InputError, match="recipe '' is not registered"):
        load_model(tmp_path, made())
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path, made(), [Unregistered()])(X["x"]), want)


def test_a_model_whose_blocks_allow_it_needs_no_class_of_ours(tmp_path: Path) -> None:
    graph = cut(nn.Sequential(nn.Sequential(nn.Linear(8, 8), nn.ReLU()), nn.Linear(8, 3)).eval(), ["0", "1"], Samples(X, torch.arange(6)))
    low_rank, bypass = LowRank(0.25), Bypass()
    save_model(graph, {"0": (Choice("b", bypass), bypass.build(graph["0"].module)), "1": (Choice("l", low_rank), low_rank.build(graph["1"].module))}, tmp_path)
    model = load_model(tmp_path, nn.Sequential(nn.Sequential(nn.Linear(8, 8), nn.ReLU()), nn.Linear(8, 3)))
    want = model(X["x"])
    free = library_free(model)
    assert torch.equal(free(X["x"]), want)
    assert all(type(module).__module__.startswith("torch.") for module in free.modules())


class Masked(nn.Module):
    """A residual layer that is called with a mask by name, and asked for its kind."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(8, 8)
        self.kind = "plain"

    def forward(self, h: Tensor, mask: Tensor | None = None) -> Tensor:
        result: Tensor = h + self.line(h if mask is None else h * mask)
        return result


class MaskedNet(nn.Module):
    def __init__(self, named: bool) -> None:
        super().__init__()
        self.named, self.layers = named, nn.ModuleList([Masked(), Masked()])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            assert layer.kind == "plain"
            x = layer(x, mask=x > 0) if self.named else layer(x)
        return x


def bypassed(folder: Path, named: bool) -> MaskedNet:
    graph = cut(MaskedNet(named).eval(), {"low": "layers.0"}, Samples(X, torch.arange(6)))
    save_model(graph, {"low": (Choice("b", Bypass()), Bypass().build(graph["low"].module))}, folder)
    return load_model(folder, MaskedNet(named))


def test_a_free_model_is_another_one_on_the_same_weights_and_answers_for_its_places(tmp_path: Path) -> None:
    model = bypassed(tmp_path, named=False)
    before, want = repr(model), model(X["x"])
    free = library_free(model)
    assert torch.equal(free(X["x"]), want)
    assert repr(model) == before
    assert type(free.get_submodule("layers.0")) is nn.Identity
    assert free.get_parameter("layers.1.line.weight") is model.get_parameter("layers.1.line.weight")


def test_a_hand_on_block_that_is_called_with_more_than_a_tensor_is_refused(tmp_path: Path) -> None:
    model = bypassed(tmp_path, named=True)
    with pytest.raises(ContractError, match=r"'layers.0' is a Restored of this toolkit"):
        library_free(model)
    assert model(X["x"]).shape == (6, 8)


def test_a_folder_that_does_not_say_how_a_stage_is_called_gives_no_free_hand_on_block(tmp_path: Path) -> None:
    bypassed(tmp_path, named=False)
    architecture = json.loads((tmp_path / "architecture.json").read_text())
    del architecture["stages"]["low"]["one_argument"]
    (tmp_path / "architecture.json").write_text(json.dumps(architecture))
    with pytest.raises(ContractError, match=r"'layers.0' is a Restored of this toolkit"):
        library_free(load_model(tmp_path, MaskedNet(named=False)))


class Tied(nn.Module):
    """A head that is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.layer, self.head = nn.Embedding(5, 8), nn.Linear(8, 8), nn.Linear(8, 5, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(self.layer(self.embed(x)))
        return result


def test_tied_weights_are_tied_in_the_loaded_model_too(tmp_path: Path) -> None:
    x, recipe = {"x": torch.arange(5)}, LowRank(0.25)
    whole = cut(Tied().eval(), ["layer"], Samples(x, torch.arange(5)))
    block = recipe.build(whole["layer"].module)
    save_model(whole, {"layer": (Choice("low", recipe), block)}, tmp_path)
    loaded = load_model(tmp_path, Tied())
    assert loaded.head.weight is loaded.embed.weight
    assert torch.equal(loaded(x["x"]), whole.run(x, {"layer": block}))
    untied = Tied()
    untied.head.weight = nn.Parameter(torch.randn(5, 8))
    apart = load_model(tmp_path, untied)
    assert apart.head.weight is not apart.embed.weight
    assert torch.equal(apart(x["x"]), loaded(x["x"]))


def test_a_model_that_needs_us_says_which_module_does(tmp_path: Path) -> None:
    saved(tmp_path, low=Bypass())
    with pytest.raises(ContractError, match=r"'layers.0' is a Restored of this toolkit"):
        library_free(load_model(tmp_path, made()))


def test_a_graph_of_steps_is_saved_and_loaded_too(tmp_path: Path) -> None:
    graph, recipe = toy_graph(), Narrow(2)
    x = {"x": torch.randn(3, 4)}
    block = recipe.build(graph["b"].module)
    save_model(graph, {"b": (Choice("tiny", recipe), block)}, tmp_path)
    fresh = toy_graph()
    for parameter in fresh["a"].module.parameters():
        parameter.data.zero_()
    loaded: StageGraph = load_graph(tmp_path, fresh, [recipe])
    assert torch.equal(loaded.run(x), graph.run(x, {"b": block}))
    with pytest.raises(InputError, match="was saved from a graph of steps; load it with load_graph"):
        load_model(tmp_path, made())


def test_a_graph_that_cannot_be_rebuilt_is_named(tmp_path: Path) -> None:
    graph, recipe = toy_graph(), Narrow(2)
    save_model(graph, {"b": (Choice("tiny", recipe), recipe.build(graph["b"].module))}, tmp_path)
    for folder, given in ((5, graph), (tmp_path, made())):
        with pytest.raises(InputError, match="load_graph needs a folder and a fresh graph like the teacher's, in this order; got"):
            load_graph(folder, given)  # type: ignore[arg-type]
    path = tmp_path / "architecture.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"stages": {"b": {"recipe": {"recipe": 5}}}}))
    with pytest.raises(DamagedFile, match="stage 'b' cannot be rebuilt: TypeError"):
        load_graph(tmp_path, graph)


@pytest.mark.parametrize("disguise", ["plain", "escaped"])
@pytest.mark.parametrize("way", ["defaultdict", "enumeration"])
def test_a_structure_that_names_a_module_to_import_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, disguise: str) -> None:
    (tmp_path / "evil_module.py").write_text("from pathlib import Path; Path(__file__).with_name('canary').touch()")
    monkeypatch.syspath_prepend(str(tmp_path))
    if way == "defaultdict":
        context: Any = {"default_factory_module": "evil_module", "default_factory_name": "x", "dict_context": []}
        node = {"type": "collections.defaultdict", "context": context, "children_spec": []}
    else:
        node = {"type": "builtins.dict", "context": json.dumps([{"__enum__": True, "fqn": "evil_module:X", "name": "a"}]), "children_spec": []}
    text = json.dumps([1, node])
    if disguise == "escaped":
        text = text.replace("__enum__", "\\\\u005f_enum__").replace('defaultdict"', '\\u0064efaultdict"')
    with pytest.raises(DamagedFile, match="names code to import"):
        Template.from_json({"spec": text, "leaves": []})
    assert not (tmp_path / "canary").exists()
