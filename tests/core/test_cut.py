import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nas.cut import cut
from nas.data import Samples
from nas.errors import InputError
from nas.evaluators.costs import count_costs
from nas.graph import call_step
from nas.model_call import ModelCall
from nas.space import Choice, Stage


class Block(nn.Module):
    """Mixed signature: positional, keyword, None, a tuple with a table that has no rows; returns a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, h: Tensor, tables: tuple[Tensor, None], *, scale: float = 1.0, mask: Tensor | None = None) -> dict[str, Any]:
        return {"h": torch.tanh(self.layer(h + tables[0])) * scale, "weights": None, "half": h * 0.5}


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 6)
        self.blocks = nn.ModuleList([Block(), Block(), Block()])
        self.tail = nn.ModuleList([nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)])
        self.register_buffer("table", torch.ones(1, 6))

    def forward(self, x: Tensor, extra: Tensor | None = None) -> dict[str, Tensor]:
        h = self.stem(x)
        for block in self.blocks:
            out = block(h, (self.table, None), scale=0.5, mask=None)
            h = out["h"] + out["half"]
        for layer in self.tail:
            h = layer(h)
        return {"logits": h, "hidden": h * 2}


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model().eval()


SAMPLES = Samples({"x": torch.randn(8, 4, generator=torch.Generator().manual_seed(0))}, torch.arange(8))
CALL = ModelCall(output="logits")


def test_the_cut_model_gives_the_models_output_and_the_models_own_modules_come_back(model: Model) -> None:
    graph = cut(model, {"low": "blocks.0", "tail": ["tail.0", "tail.1", "tail.2"]}, SAMPLES, CALL)
    want = model(**SAMPLES.inputs)["logits"]
    before = dict(model.named_modules())
    assert torch.equal(graph.run(SAMPLES.inputs), want)
    same = {"low": copy.deepcopy(graph["low"].module), "tail": copy.deepcopy(graph["tail"].module)}
    assert torch.equal(graph.run(SAMPLES.inputs, same), want)
    assert dict(model.named_modules()) == before


def test_a_stage_reads_and_writes_the_tensors_that_have_a_row_for_each_sample(model: Model) -> None:
    graph = cut(model, {"low": "blocks.0"}, SAMPLES, CALL)
    step = graph["low"]
    read, written = graph.passed(SAMPLES.inputs)["low"]
    assert [tuple(value.shape) for value in read] == [(8, 6)]
    assert [tuple(value.shape) for value in written] == [(8, 6), (8, 6)]
    for one, other in zip(call_step(step, step.module, read), written, strict=True):
        assert torch.equal(one, other)


def test_a_block_may_return_bare_tensors_and_the_model_still_gets_its_containers(model: Model) -> None:
    class Bare(nn.Module):
        def forward(self, h: Tensor, *rest: Any, **more: Any) -> tuple[Tensor, Tensor]:
            return torch.zeros_like(h), h

    graph = cut(model, {"low": "blocks.0"}, SAMPLES, CALL)
    with torch.no_grad():
        h = model.stem(SAMPLES.inputs["x"])
        for block in model.blocks[1:]:
            out = block(h, (model.table, None), scale=0.5)
            h = out["h"] + out["half"]
        want = nn.Sequential(*model.tail)(h)
    assert torch.equal(graph.run(SAMPLES.inputs, {"low": Bare()}), want)


def test_a_chain_is_replaced_by_one_block(model: Model) -> None:
    graph = cut(model, {"tail": ["tail.0", "tail.1", "tail.2"]}, SAMPLES, CALL)
    block = nn.Linear(6, 3)
    seen = graph.passed(SAMPLES.inputs)["tail"][0][0]
    assert torch.equal(graph.run(SAMPLES.inputs, {"tail": block}), block(seen))


def test_steps_stand_in_the_order_of_the_calls(model: Model) -> None:
    graph = cut(model, {"late": "blocks.2", "early": "blocks.0"}, SAMPLES, CALL)
    assert [step.name for step in graph.steps] == ["early", "late", "(rest)"]


def test_parameters_of_stages_and_rest_add_up_to_the_models(model: Model) -> None:
    graph = cut(model, {"low": "blocks.0", "tail": ["tail.1", "tail.2"]}, SAMPLES, CALL)
    counted = [sum(p.numel() for p in step.module.parameters()) for step in graph.steps]
    assert sum(counted) == sum(p.numel() for p in model.parameters())


def test_positional_inputs_and_tuples_are_called_as_the_user_says() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, pair: tuple[Tensor, dict[str, Tensor]]) -> tuple[Tensor, None]:
            return self.layer(pair[0]) + pair[1]["b"], None

    model = Pair().eval()
    samples = Samples({"a": torch.ones(4, 4), "b": torch.ones(4, 4)}, torch.arange(4))

    def call(model: nn.Module, inputs: Mapping[str, Tensor]) -> Any:
        return model((inputs["a"], {"b": inputs["b"]}))

    graph = cut(model, {"layer": "layer"}, samples, ModelCall(call))
    assert torch.equal(graph.run(samples.inputs), model((samples.inputs["a"], {"b": samples.inputs["b"]}))[0])


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.layer(x)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x))


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ({"a": "blocks.5"}, r"stage 'a': the model has no module 'blocks.5'; did you mean 'blocks.\d'\?"),
        ({"a": "blocks"}, "'blocks' is a ModuleList, which is never called; name what is in it: blocks.0, blocks.1"),
        ({"a": "blocks.0", "b": "blocks.0.layer"}, "module 'blocks.0.layer' belongs to stages 'a' and 'b'; a module may belong to one stage"),
        ({"a": ["blocks.0", "blocks.1"]}, "stage 'a': 'blocks.1' must read the one tensor that 'blocks.0' writes"),
        ({"a": []}, "stage 'a' names no module"),
    ],
)
def test_stages_that_cannot_be_cut_are_refused_with_the_way_out(model: Model, stages: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        cut(model, stages, SAMPLES, CALL)


def test_a_module_under_two_names_belongs_to_one_stage_only(model: Model) -> None:
    model.blocks[1] = model.blocks[0]
    with pytest.raises(InputError, match=r"module 'blocks.0' belongs to stages 'a' and 'b'"):
        cut(model, {"a": "blocks.0", "b": "blocks.1"}, SAMPLES, CALL)


def test_a_module_that_is_called_twice_a_pass_is_refused() -> None:
    with pytest.raises(InputError, match="module 'layer' is called 2 times a pass; it must be called once; cut the module that calls it"):
        cut(Twice().eval(), {"a": "layer"}, SAMPLES)


def test_a_model_in_training_mode_is_refused(model: Model) -> None:
    model.blocks[1].train()
    with pytest.raises(InputError, match=r"must be in evaluation mode, 'blocks.1' and 1 more are in training mode; call model.eval\(\)"):
        cut(model, {"a": "blocks.0"}, SAMPLES, CALL)


def test_a_model_on_another_device_is_refused(model: Model) -> None:
    with pytest.raises(InputError, match="the model is on meta, samples 'x' on cpu; move one of them"):
        cut(model.to("meta"), {"a": "blocks.0"}, SAMPLES, CALL)


def test_a_buffer_that_changes_during_forward_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="buffer 'calls' changes during forward"):
        cut(Counter().eval(), {"a": "layer"}, SAMPLES)


def test_a_model_that_is_random_in_evaluation_mode_is_refused() -> None:
    class Noisy(Twice):
        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) + torch.rand(len(x), 4)

    with pytest.raises(InputError, match="gives another output for the same input"):
        cut(Noisy().eval(), {"a": "layer"}, SAMPLES)


@pytest.mark.parametrize(
    ("output", "message"),
    [(None, r"returns 2 tensors \(logits, hidden\); choose one with output="), ("logit", "has no 'logit'; did you mean 'logits'")],
)
def test_an_output_that_cannot_be_told_is_asked_for(model: Model, output: str | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        cut(model, {"a": "blocks.0"}, SAMPLES, ModelCall(output=output))


def test_fewer_than_three_samples_are_too_few_to_tell_rows_from_tables(model: Model) -> None:
    with pytest.raises(InputError, match="needs at least 3 samples to run it on, got 2"):
        cut(model, {"a": "blocks.0"}, SAMPLES.rows(slice(0, 2)), CALL)


class ReadsItsOwnBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.second(self.first(x))
        return hidden + self.first.bias


def test_a_module_whose_content_the_model_itself_reads_is_refused_when_it_is_counted() -> None:
    samples = Samples({"x": torch.randn(8, 4, generator=torch.Generator().manual_seed(0))}, torch.arange(8))
    graph = cut(ReadsItsOwnBlock().eval(), {"first": "first"}, samples)
    with pytest.raises(InputError, match="'first' cannot be a stage: the model itself reads its 'bias'"):
        count_costs(graph, (Stage("first", (Choice("teacher"),)),), {}, {"x": samples.inputs["x"][:1]}, strict=False)
