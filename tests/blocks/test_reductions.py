"""Every generic reduction on blocks of torch, diffusers and transformers: the contract, and the mathematics against slow obvious versions."""

from typing import Any

import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertConfig, GPT2Config, LlamaConfig, ViTConfig
from transformers.models.bert.modeling_bert import BertLayer
from transformers.models.gpt2.modeling_gpt2 import GPT2Block
from transformers.models.llama.modeling_llama import LlamaMLP
from transformers.models.vit.modeling_vit import ViTLayer

from nas.blocks.reductions.attention import FewerHeads, NoAttention, PooledAttention, SharedAttention, SlimAttention
from nas.blocks.reductions.attention_parts import find_attention
from nas.blocks.reductions.convolutions import Bottleneck, Separable, nearest_separable
from nas.blocks.reductions.depth import Bypass, FewerLayers
from nas.blocks.reductions.low_rank import LowRank, factors
from nas.blocks.reductions.reduction import Reduction, copied
from nas.blocks.reductions.slices import TeacherSlice
from nas.blocks.reductions.widths import Channels, FeedForward, find_pairs
from nas.blocks.suite import check_recipe
from nas.errors import DoesNotFit, InputError


class Residual(nn.Module):
    """A ResNet block with a strided shortcut."""

    def __init__(self, width: int = 8, out: int = 12, inner: int = 16) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, inner, 3, 2, 1)
        self.bn1 = nn.BatchNorm2d(inner)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(inner, out, 3, padding=1)
        self.shortcut = nn.Sequential(nn.Conv2d(width, out, 1, 2), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.conv2(self.relu(self.bn1(self.conv1(x)))) + self.shortcut(x)
        return result


class Closed(nn.Module):
    """Keeps nothing of what it was built from."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, inner)


def inverted_residual() -> nn.Module:
    return nn.Sequential(nn.Conv2d(8, 24, 1), nn.BatchNorm2d(24), nn.ReLU6(), nn.Conv2d(24, 24, 3, padding=1, groups=24), nn.ReLU6(), nn.Conv2d(24, 8, 1))


def trained_like(module: nn.Module) -> nn.Module:
    """Weights and statistics unlike those of a fresh module."""
    generator = torch.Generator().manual_seed(1)
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            tensor.data.add_(0.1 * torch.rand(tensor.shape, generator=generator))
    return module.eval()


torch.manual_seed(0)
IMAGE, TOKENS = torch.randn(2, 8, 8, 8), torch.randn(2, 6, 32)
_VIT = ViTConfig(hidden_size=32, num_attention_heads=4, intermediate_size=64, attn_implementation="eager")
_BERT = BertConfig(hidden_size=32, num_attention_heads=4, intermediate_size=64, attn_implementation="eager")
BLOCKS: dict[str, tuple[nn.Module, Tensor]] = {
    "residual": (trained_like(Residual()), IMAGE),
    "inverted": (trained_like(inverted_residual()), IMAGE),
    "torch": (trained_like(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)), TOKENS),
    "vit": (trained_like(ViTLayer(_VIT)), TOKENS),
    "bert": (trained_like(BertLayer(_BERT)), TOKENS),
    "diffusers": (trained_like(BasicTransformerBlock(32, 4, 8)), TOKENS),
    "llama_mlp": (trained_like(LlamaMLP(LlamaConfig(hidden_size=32, intermediate_size=64))), TOKENS),
    "gpt2": (trained_like(GPT2Block(GPT2Config(n_embd=32, n_head=4, attn_implementation="eager"), 0)), TOKENS),
    "closed": (Closed(8, 8), IMAGE),
    "stack": (trained_like(nn.Sequential(*(nn.Sequential(nn.Linear(32, 32), nn.GELU()) for _ in range(4)))), TOKENS),
}
CONVOLUTIONS = (Separable(), Bottleneck(0.25), Channels(0.5), LowRank(0.25))
TRANSFORMERS = (FewerHeads(0.5), NoAttention(), SharedAttention(), PooledAttention(2), FeedForward(0.5), LowRank(0.25), Bypass())
FITS: list[tuple[str, Reduction]] = [
    *(("residual", recipe) for recipe in CONVOLUTIONS),
    ("inverted", Channels(0.5)),
    *((name, recipe) for name in ("torch", "vit", "bert", "diffusers") for recipe in TRANSFORMERS),
    *(("gpt2", recipe) for recipe in (FewerHeads(0.5), NoAttention(), FeedForward(0.5), LowRank(0.25), Bypass())),
    ("llama_mlp", FeedForward(0.5)),
    ("stack", FewerLayers(0.5)),
    ("residual", TeacherSlice({"width": 8, "out": 12, "inner": 4})),
]


@pytest.mark.parametrize(("name", "recipe"), FITS, ids=lambda value: value if isinstance(value, str) else value.name)
def test_a_reduction_keeps_the_contract_and_is_no_larger(name: str, recipe: Reduction) -> None:
    teacher, example = BLOCKS[name]
    block = check_recipe(recipe, teacher, example)
    before, after = (sum(p.numel() for p in module.parameters()) for module in (teacher, block))
    assert after < before or (isinstance(recipe, PooledAttention) and after == before)


@pytest.mark.parametrize(
    ("name", "recipe", "message"),
    [
        ("stack", Separable(), "separable needs a convolution with a kernel above 1 and groups 1 that gets smaller by it, found GELU, Linear"),
        ("residual", NoAttention(), "needs attention with known projections .* found none in Residual"),
        ("residual", FeedForward(0.5), "needs two Linear layers of which one reads what the other writes, found none"),
        ("residual", FewerLayers(0.5), r"needs at least two layers alike \(class and weight shapes\) in a row, found none in Residual"),
        ("gpt2", SharedAttention(), "needs plain projections, found a causal mask, one layer for query, key and value"),
        ("closed", TeacherSlice({"inner": 4}), "needs 'width' to build a Closed, found it neither in sizes nor as an attribute"),
        ("residual", TeacherSlice({"depth": 4, "width": 8, "out": 8}), "needs sizes that Residual takes, found depth"),
    ],
)
def test_a_reduction_that_does_not_fit_says_what_it_needs_and_what_it_found(name: str, recipe: Reduction, message: str) -> None:
    with pytest.raises(DoesNotFit, match=message):
        recipe.build(BLOCKS[name][0])


def test_several_pairs_of_layers_in_one_block_are_counted_and_their_way_out_is_said() -> None:
    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token_in, self.token_out = nn.Linear(4, 32), nn.Linear(32, 4)
            self.channel_in, self.channel_out = nn.Linear(8, 64), nn.Linear(64, 8)

    with pytest.raises(DoesNotFit, match=r"found 2 such pairs, which .*; make each pair a module and a stage of its own"):
        FeedForward(0.5).build(Mixer())


def test_handing_on_does_not_fit_a_stage_that_changes_the_shape() -> None:
    with pytest.raises(DoesNotFit, match=r"bypass needs one output shaped like the first input \(2, 8\), found \(2, 4\)"):
        Bypass().check([torch.empty(2, 8)], [torch.empty(2, 4)])


@pytest.mark.parametrize("make", [lambda: LowRank(0.0), lambda: Channels(1.0), lambda: FeedForward(2.0), lambda: PooledAttention(1)])
def test_options_out_of_range_are_refused(make: Any) -> None:
    with pytest.raises(InputError, match="must"):
        make()


@pytest.mark.parametrize("name", ["residual", "inverted", "torch", "vit", "bert", "diffusers", "llama_mlp", "gpt2"])
def test_pruned_hidden_channels_are_exactly_those_the_reader_ignores(name: str) -> None:
    """With the dropped channels' read weights at zero, the whole block computes what the pruned block does."""
    teacher, example = BLOCKS[name]
    kind = Channels if name in ("residual", "inverted") else FeedForward
    pruned = kind(0.5).build(teacher).eval()
    masked = copied(teacher).eval()
    for pair, small in zip(find_pairs(masked), find_pairs(pruned), strict=True):
        full, kept = pair.reader.weight.data, small.reader.weight.data
        columns = full.flatten(2).transpose(0, 1).flatten(1) if full.ndim > 2 else full.T
        left = kept.flatten(2).transpose(0, 1).flatten(1) if kept.ndim > 2 else kept.T
        for k, column in enumerate(columns):
            if not any(torch.equal(column, other) for other in left):
                full[:, k] = 0
    with torch.no_grad():
        torch.testing.assert_close(_first(pruned(example)), _first(masked(example)), rtol=1e-4, atol=1e-4)


def test_a_transposed_linear_layer_of_transformers_is_copied_as_the_linear_layer_it_is() -> None:
    teacher, example = BLOCKS["gpt2"]
    twin = copied(teacher)
    assert {type(layer).__name__ for layer in teacher.modules()} - {type(layer).__name__ for layer in twin.modules()} == {"Conv1D"}
    with torch.no_grad():
        torch.testing.assert_close(_first(twin(example)), _first(teacher(example)))


def test_fewer_heads_of_a_fused_attention_are_those_whose_outputs_count_most() -> None:
    """With the dropped heads' output weights at zero, the whole block computes what the block with fewer heads does."""
    teacher, example = BLOCKS["gpt2"]
    few = FewerHeads(0.5).build(teacher).eval()
    masked: Any = copied(teacher).eval()
    kept: Any = few
    rows = {tuple(row) for row in kept.attn.c_proj.weight.T.tolist()}
    masked.attn.c_proj.weight.data *= torch.tensor([float(tuple(row) in rows) for row in masked.attn.c_proj.weight.T.tolist()])
    assert len(rows) == 16
    with torch.no_grad():
        torch.testing.assert_close(_first(few(example)), _first(masked(example)), rtol=1e-4, atol=1e-4)


def _first(result: Any) -> Tensor:
    tensor: Tensor = result[0] if isinstance(result, tuple) else result
    return tensor


@pytest.mark.parametrize("name", ["torch", "vit", "bert", "diffusers"])
def test_slim_attention_with_nothing_shared_or_pooled_is_the_teachers_attention(name: str) -> None:
    teacher, example = BLOCKS[name]
    attention = next(find_attention(teacher))
    arguments = (example, example, example) if name == "torch" else (example,)
    slim = SlimAttention.of(attention).eval()
    with torch.no_grad():
        torch.testing.assert_close(_first(slim(*arguments)), _first(attention.module(*arguments)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("boolean", [True, False])
def test_slim_attention_masks_as_torchs_does(boolean: bool) -> None:
    teacher = BLOCKS["torch"][0]
    attention = next(find_attention(teacher))
    mask = torch.triu(torch.ones(6, 6), 1).bool()
    given = mask if boolean else torch.zeros(6, 6).masked_fill(mask, -torch.inf)
    slim = SlimAttention.of(attention).eval()
    with torch.no_grad():
        want = attention.module(TOKENS, TOKENS, TOKENS, attn_mask=given, need_weights=False)[0]
        torch.testing.assert_close(slim(TOKENS, TOKENS, TOKENS, attn_mask=given, need_weights=False)[0], want, rtol=1e-4, atol=1e-5)


def test_low_rank_factors_are_the_nearest_of_their_rank() -> None:
    weight = torch.randn(12, 20)
    left, right = factors(weight, 5)
    lost = torch.linalg.svdvals(weight)[5:].square().sum()
    torch.testing.assert_close((weight - left @ right).square().sum(), lost)


def test_a_separable_weight_is_recovered_exactly() -> None:
    spatial, channels = torch.randn(6, 3, 3), torch.randn(10, 6)
    weight = channels[:, :, None, None] * spatial
    got_spatial, got_channels = nearest_separable(weight)
    torch.testing.assert_close(got_channels[:, :, None, None] * got_spatial, weight, rtol=1e-4, atol=1e-5)


def test_a_separable_convolution_equals_the_convolution_with_the_product_weight() -> None:
    teacher = nn.Sequential(nn.Conv2d(6, 10, 3, padding=1))
    block = Separable().build(teacher)
    depthwise, mixing = block[0]  # type: ignore[index]
    weight = mixing.weight * depthwise.weight.transpose(0, 1)
    x = torch.randn(1, 6, 5, 5)
    torch.testing.assert_close(block(x), functional.conv2d(x, weight, mixing.bias, padding=1), rtol=1e-4, atol=1e-5)


def test_teacher_slices_start_from_the_teachers_leading_weights() -> None:
    teacher = BLOCKS["residual"][0]
    block = TeacherSlice({"width": 8, "out": 12, "inner": 4}).build(teacher)
    assert torch.equal(block.conv1.weight, teacher.conv1.weight[:4])
    assert torch.equal(block.conv2.weight, teacher.conv2.weight[:, :4])


class NormsLast(nn.Module):
    """A residual block whose norms are registered after its convolutions; the first norms what the block reads."""

    def __init__(self, width: int = 8, inner: int = 16) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(width, inner, 5, padding=2), nn.Conv1d(inner, width, 5, padding=2)
        self.na, self.nb = nn.BatchNorm1d(width), nn.BatchNorm1d(inner)

    def forward(self, h: Tensor) -> Tensor:
        result: Tensor = h + self.b(self.nb(self.a(self.na(h).relu())).relu())
        return result


def test_channels_are_pruned_through_a_norm_registered_apart_from_its_pair() -> None:
    teacher = NormsLast().eval()
    block: Any = check_recipe(Channels(0.5), teacher, torch.randn(3, 8, 20))
    assert (block.a.out_channels, block.nb.num_features, block.na.num_features) == (8, 8, 8)
    assert sum(p.numel() for p in block.parameters()) < sum(p.numel() for p in teacher.parameters())


class GroupNormed(nn.Module):
    """A residual block with group norms, its layers registered in the given order; `skip` is a convolution beside them."""

    def __init__(self, order: str, *, width: int = 8, inner: int = 24, groups: int = 4) -> None:
        super().__init__()
        made: dict[str, nn.Module] = {
            "a": nn.Conv1d(width, inner, 3, padding=1), "na": nn.GroupNorm(groups, inner), "act": nn.SiLU(),
            "b": nn.Conv1d(inner, width, 3, padding=1), "nb": nn.GroupNorm(4, width), "skip": nn.Conv1d(width, width, 1),
        }  # fmt: skip
        for name in order.split():
            self.add_module(name, made[name])

    def forward(self, h: Tensor) -> Tensor:
        layers = dict(self.named_children())
        result: Tensor = h
        for name in ("a", "na", "act", "b", "nb"):
            result = layers[name](result) if name in layers else result
        return result + (layers["skip"](h) if "skip" in layers else h)


@pytest.mark.parametrize("order", ["a na act b", "a na act b nb skip", "a act b na nb", "a b na", "a b nb na skip"])
def test_channels_are_cut_through_a_group_norm_and_beside_a_skip_convolution(order: str) -> None:
    teacher: Any = GroupNormed(order).eval()
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    block: Any = check_recipe(Channels(0.6), teacher, torch.randn(3, 8, 20))
    assert (block.a.out_channels, block.b.in_channels) == (16, 16)  # 14.4 channels, to the nearest multiple of 4 groups
    assert (block.na.num_groups, block.na.num_channels, block.na.weight.shape) == (4, 16, (16,))
    kept = [int((teacher.a.weight == row).flatten(1).all(1).nonzero()) for row in block.a.weight]
    assert torch.equal(block.na.bias, teacher.na.bias[kept])
    if "skip" in order:
        assert block.skip.weight.shape == teacher.skip.weight.shape


def test_what_keeps_channels_from_being_cut_is_named() -> None:
    x = torch.randn(3, 8, 20)
    with pytest.raises(DoesNotFit, match=r"found none, since GroupNorm\(24, 24, .*\) stands between two that would do"):
        check_recipe(Channels(0.5), GroupNormed("a na act b", groups=24).eval(), x)
    with pytest.raises(DoesNotFit, match=r"found none, since LayerNorm\(\(20,\), .*\) stands between two that would do"):
        check_recipe(Channels(0.5), nn.Sequential(nn.Conv1d(8, 16, 1), nn.LayerNorm(20), nn.Conv1d(16, 8, 1)), x)


def test_a_group_norm_that_its_width_does_not_tell_apart_is_no_fit() -> None:
    with pytest.raises(DoesNotFit, match="Expected weight to be a vector of size"):
        check_recipe(Channels(0.5), GroupNormed("a act b na nb", inner=8).eval(), torch.randn(3, 8, 20))
