import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import register_flop_formula

from nas.errors import ContractError, InputError
from nas.evaluators.costs import Macs, count_costs, count_macs, count_params
from nas.graph import StageGraph, Step
from nas.problem import CostTable
from nas.space import Choice, Stage


class Attention(nn.Module):
    """`(B, L, 8) -> (B, L, 8)` with 2 heads of 4, attended by `product`."""

    def __init__(self, product: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.to_qkv = nn.Linear(8, 24, bias=False)
        self.product = product

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in self.to_qkv(x).chunk(3, dim=-1))
        return self.product(q, k, v).transpose(1, 2).flatten(2)


def by_bmm(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (part.flatten(0, 1) for part in (q, k, v))
    return torch.bmm(torch.bmm(q, k.transpose(1, 2)).softmax(-1), v).unflatten(0, (-1, 2))


def by_matmul(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-1, -2)).softmax(-1) @ v


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("product", [functional.scaled_dot_product_attention, by_bmm, by_matmul])
def test_attention_products_are_counted_however_they_are_written(product: Callable[[Tensor, Tensor, Tensor], Tensor], device: str) -> None:
    macs = count_macs(Attention(product).to(device), (torch.zeros(3, 5, 8, device=device),))
    assert macs == Macs(linear=3 * 5 * 8 * 24, attention=3 * 2 * 5 * 5 * (4 + 4))


def test_convolutions_count_their_groups_and_strides() -> None:
    conv = nn.Conv2d(8, 12, 3, stride=2, padding=1, groups=4)
    assert count_macs(conv, (torch.zeros(1, 8, 9, 9),)) == Macs(12 * 2 * 9 * 5 * 5, 0)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
@pytest.mark.parametrize("batch_first", [True, False])
def test_recurrent_layers_count_each_gate_of_each_token(kind: type[nn.RNNBase], gates: int, batch_first: bool, device: str) -> None:
    layer = kind(6, 4, num_layers=2, bidirectional=True, batch_first=batch_first, device=device)
    first, second = gates * 4 * (6 + 4), gates * 4 * (2 * 4 + 4)  # each direction; the second layer reads both directions of the first
    assert count_macs(layer, (torch.zeros(3, 5, 6, device=device),)) == Macs(3 * 5 * 2 * (first + second), 0)


def test_a_projected_lstm_counts_the_projection_too() -> None:
    assert count_macs(nn.LSTM(6, 4, proj_size=2), (torch.zeros(5, 3, 6),)) == Macs(15 * (16 * 6 + 16 * 2 + 2 * 4), 0)


def test_what_multiplies_without_a_count_is_named_with_its_stage() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.both = nn.Bilinear(4, 4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return functional.interpolate(self.both(x, x)[None], 4, mode="linear")[0]

    graph = StageGraph(("x",), (Step("pair", ("x",), ("y",), Pair()),), "y")
    table = count_costs(graph, (Stage("pair", (Choice("teacher"),)),), {}, {"x": torch.zeros(1, 4)}, strict=False)
    assert table.notes == ("MACs leave out '_trilinear' at pair: no count is known for it; register one with torch.utils.flop_counter.register_flop_formula",)


def test_an_operator_of_ones_own_counts_once_torch_knows_its_formula() -> None:
    @torch.library.custom_op("stage_nas_tests::mix", mutates_args=())
    def mix(x: Tensor, weight: Tensor) -> Tensor:
        return x @ weight

    class Mixed(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # its name in nn.Linear
            mixed: Tensor = mix(input, self.weight.T)
            return mixed

    arguments = (torch.zeros(5, 3),)
    assert count_macs(Mixed(3, 4), arguments, strict=False) == Macs(0, 0, ("stage_nas_tests::mix",))

    @register_flop_formula(torch.ops.stage_nas_tests.mix)
    def mix_flops(x: torch.Size, weight: torch.Size, **_: object) -> int:
        return 2 * x.numel() * weight[1]

    assert count_macs(Mixed(3, 4), arguments, strict=False) == Macs(5 * 3 * 4, 0)


def test_norms_and_activations_count_nothing() -> None:
    layers = nn.Sequential(nn.GroupNorm(2, 4), nn.SiLU(), nn.Conv2d(4, 2, 1), nn.GELU(), nn.Upsample(scale_factor=2), nn.AvgPool2d(2))
    assert count_macs(layers, (torch.zeros(1, 4, 6, 6),)) == Macs(4 * 2 * 36, 0)


def test_an_unknown_operator_is_an_error_and_not_a_zero() -> None:
    class Distances(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cdist(x, x)

    with pytest.raises(ContractError, match="step 'far': no count is known for cdist"):
        count_macs(Distances(), (torch.zeros(1, 3, 4),), where="step 'far'")


def test_counters_that_disagree_are_an_error() -> None:
    class Sneaky(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x @ x.transpose(0, 1) if torch.jit.is_tracing() else x

    with pytest.raises(ContractError, match=r"fvcore counts .* FlopCounterMode"):
        count_macs(Sneaky(), (torch.zeros(3, 4),))


def test_counting_leaves_mode_and_log_levels_as_they_were() -> None:
    layers = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    layers[1].eval()
    level = logging.getLogger("fvcore.nn.jit_analysis").level
    count_macs(layers, (torch.zeros(1, 2),))
    assert (layers.training, layers[0].training, layers[1].training) == (True, True, False)
    assert logging.getLogger("fvcore.nn.jit_analysis").level == level


def test_table_holds_every_choice_and_the_fixed_part(graph: StageGraph, stages: tuple[Stage, ...]) -> None:
    table = table_of(graph, stages)
    a = table.by_choice["params"][0]
    assert a.tolist() == [8 * h + h + 8 * h + 8 for h in (16, 8, 2)]
    assert table.fixed["params"] == count_params(graph["stem"].module) + count_params(graph["out"].module)
    assert table.by_choice["macs"][2].tolist() == [16 * h + 8 * h for h in (16, 8, 2)]
    assert table.by_choice["macs_with_attention"].tolist() == table.by_choice["macs"].tolist()


def test_table_is_the_same_on_the_meta_device(graph: StageGraph, stages: tuple[Stage, ...]) -> None:
    real = table_of(graph, stages)
    for step in graph.steps:
        step.module.to("meta")
    meta = table_of(graph, stages, torch.zeros(1, 4, device="meta"))
    assert all(meta.by_choice[metric].tolist() == real.by_choice[metric].tolist() for metric in real.metrics)
    assert meta.fixed == real.fixed


def test_extra_measures_add_up_like_parameters(graph: StageGraph, stages: tuple[Stage, ...]) -> None:
    def biases(module: nn.Module) -> int:
        return sum(p.numel() for p in module.parameters() if p.ndim == 1)

    table = count_costs(graph, stages, blocks_of(graph, stages), {"x": torch.zeros(1, 4)}, extra={"biases": biases})
    assert table.of((0, 0, 0))["biases"] == sum(biases(step.module) for step in graph.steps)


def test_parameters_shared_between_steps_are_an_error(graph: StageGraph, stages: tuple[Stage, ...]) -> None:
    a, b = graph["a"].module, graph["b"].module
    a.layers[0].weight = b.layers[0].weight  # type: ignore[union-attr,index]
    with pytest.raises(ContractError, match=r"parameter 'layers.0.weight' is used at steps 'a' and 'b'"):
        table_of(graph, stages)


def test_parameters_shared_between_a_stage_and_a_block_of_another_are_an_error(graph: StageGraph, stages: tuple[Stage, ...]) -> None:
    blocks = blocks_of(graph, stages)
    blocks["a", "half"] = graph["b"].module
    with pytest.raises(ContractError, match="is used at steps 'b' and 'a'"):
        count_costs(graph, stages, blocks, {"x": torch.zeros(1, 4)})


def test_block_that_is_missing_is_named(graph: StageGraph, stages: tuple[Stage, ...]) -> None:
    with pytest.raises(InputError, match="costs need a block for choice 'half' of stage 'a'"):
        count_costs(graph, stages, {}, {"x": torch.zeros(1, 4)})


def test_step_without_parameters_costs_nothing() -> None:
    graph = StageGraph(("x",), (Step("double", ("x",), ("y", "z"), Twice()),), "y")
    table = count_costs(graph, (Stage("double", (Choice("teacher"),)),), {}, {"x": torch.zeros(1, 4)})
    assert table.of((0,)) == {"params": 0, "macs": 0, "macs_with_attention": 0}


class Twice(nn.Module):
    """`x -> (x, x)`."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


def blocks_of(graph: StageGraph, stages: tuple[Stage, ...]) -> dict[tuple[str, str], nn.Module]:
    return {(stage.name, c.name): c.recipe.build(graph[stage.name].module) for stage in stages for c in stage.choices if c.recipe is not None}


def table_of(graph: StageGraph, stages: tuple[Stage, ...], x: Tensor | None = None) -> CostTable:
    return count_costs(graph, stages, blocks_of(graph, stages), {"x": torch.zeros(1, 4) if x is None else x})
