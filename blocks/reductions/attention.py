"""Cheaper attention: fewer heads, one key and value for all heads [Shazeer, 2019], pooled keys and values [Wang et al., PVT v2], or none."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from nas.blocks.reductions.attention_parts import Attention, find_attention, hidden_states
from nas.blocks.reductions.reduction import Reduction, check_fraction, copied, put, reduction
from nas.blocks.reductions.widths import take_inputs, take_outputs
from nas.errors import ContractError, DoesNotFit, InputError


@reduction
@dataclass(frozen=True)
class FewerHeads(Reduction):
    """A fraction of the heads, those whose output weights are the largest."""

    fraction: float = 0.5

    def __post_init__(self) -> None:
        check_fraction(self, self.fraction)

    def build(self, teacher: nn.Module) -> nn.Module:
        """The teacher's block with fewer heads."""
        return _rebuilt(self, teacher, self._narrow)

    def _narrow(self, attention: Attention) -> nn.Module:
        keep = max(1, round(self.fraction * attention.heads))
        if keep == attention.heads:
            raise DoesNotFit(f"{self.name} needs at least two heads, found {attention.heads}")
        if attention.fused is not None:
            return _narrow_fused(attention, attention.fused, keep)
        if attention.projections is None:
            module: nn.Module = SlimAttention.of(attention)
            parts: Attention = next(find_attention(module))
        else:
            module, parts = attention.module, attention
        assert parts.projections is not None
        query, key, value = parts.projections
        if not query.out_features == key.out_features == value.out_features == parts.out.in_features:
            raise DoesNotFit(f"{self.name} needs query, key and value of one width, found {query.out_features}, {key.out_features}, {value.out_features}")
        size = query.out_features // parts.heads
        kept = _strongest_heads(parts.out.weight.detach(), parts.heads, keep)
        for layer in parts.projections:
            take_outputs(layer, kept)
        take_inputs(parts.out, kept)
        setattr(module, parts.heads_attribute, keep)
        for name in ("all_head_size", "inner_dim", "inner_kv_dim"):
            if hasattr(module, name):
                setattr(module, name, keep * size)
        return module


def _narrow_fused(attention: Attention, fused: nn.Linear, keep: int) -> nn.Module:
    """The attention with fewer heads, query, key and value side by side in one layer; in place."""
    module: Any = attention.module
    width = attention.out.in_features
    kept = _strongest_heads(attention.out.weight.detach(), attention.heads, keep)
    take_outputs(fused, torch.cat([kept + k * width for k in range(3)]))
    take_inputs(attention.out, kept)
    module.num_heads, module.split_size = keep, len(kept)
    return attention.module


_NORM_BEFORE = (
    ("attn", "ln_1"),
    ("attn1", "norm1"),
    ("attn2", "norm2"),
    ("attention", "layernorm_before"),
    ("self_attn", "layer_norm1"),
    ("self_attn", "input_layernorm"),
)
"""Attention and the normalisation that only it reads, by their names in a layer of diffusers and transformers."""


@reduction
@dataclass(frozen=True)
class NoAttention(Reduction):
    """Attention answers zero; whatever is added to it remains."""

    def build(self, teacher: nn.Module) -> nn.Module:
        """The teacher's block without attention."""

        def zero(attention: Attention) -> nn.Module:
            return Zero(attention.returns_tensor, attention.out.out_features if attention.inside else attention.out.in_features)

        twin = _rebuilt(self, teacher, zero)
        for parent in twin.modules():
            for attention, norm in _NORM_BEFORE:
                before = getattr(parent, norm, None)
                if isinstance(getattr(parent, attention, None), Zero) and isinstance(before, nn.LayerNorm):
                    setattr(parent, norm, nn.Identity())  # nothing would read what it writes
        return twin


@reduction
@dataclass(frozen=True)
class SharedAttention(Reduction):
    """All heads share one key and one value, the mean of the teacher's."""

    def build(self, teacher: nn.Module) -> nn.Module:
        """The teacher's block with one key and value."""

        def shared(attention: Attention) -> nn.Module:
            if attention.heads < 2:
                raise DoesNotFit(f"{self.name} needs at least two heads, found {attention.heads}")
            return SlimAttention.of(attention, shared=True)

        return _rebuilt(self, teacher, shared)


@reduction
@dataclass(frozen=True)
class PooledAttention(Reduction):
    """Keys and values of tokens averaged over windows of `window`; saves multiply-adds, no parameters."""

    window: int = 4

    def __post_init__(self) -> None:
        if self.window < 2:
            raise InputError(f"{self.recipe}: the window must be at least 2, got {self.window}")

    def build(self, teacher: nn.Module) -> nn.Module:
        """The teacher's block with pooled keys and values."""
        return _rebuilt(self, teacher, lambda attention: SlimAttention.of(attention, window=self.window))


class Zero(nn.Module):
    """Attention that answers zero. `out (B, N, width)`."""

    batch_first, in_proj_bias, _qkv_same_embed_dim = True, None, False  # what torch's encoder layer asks for

    def __init__(self, returns_tensor: bool, width: int) -> None:
        super().__init__()
        self.returns_tensor, self.width = returns_tensor, width

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Zeros, in the form the teacher's attention returns."""
        hidden = hidden_states(args, kwargs)
        zero = hidden.new_zeros(*hidden.shape[:-1], self.width)
        return zero if self.returns_tensor else (zero, None)


class SlimAttention(nn.Module):
    """Scaled dot-product attention with the teacher's projections; keys and values may be shared by all heads, or pooled.

    Called like the attention it stands for: `(hidden, context or mask, ...)` of torch, diffusers or transformers.
    """

    batch_first, in_proj_bias, _qkv_same_embed_dim = True, None, False  # what torch's encoder layer asks for

    def __init__(self, projections: tuple[nn.Linear, ...], out: nn.Linear | None, heads: int, *, window: int, called: str, returns_tensor: bool) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = projections
        self.out_proj = out
        self.heads, self.window = heads, window
        self._called, self._returns_tensor = called, returns_tensor

    @classmethod
    def of(cls, attention: Attention, *, shared: bool = False, window: int = 1) -> "SlimAttention":
        """The slim form of an attention, with its weights."""
        _check_plain(attention)
        projections = attention.projections or _split(attention.module)
        if shared:
            query, key, value = projections
            projections = query, _mean_head(key, attention.heads), _mean_head(value, attention.heads)
        called = "torch" if attention.projections is None else "diffusers" if attention.returns_tensor else "transformers"
        out = attention.out if attention.inside else None
        if isinstance(attention.module, nn.MultiheadAttention):
            out = _linear(attention.out.weight, attention.out.bias)
        return cls(projections, out, attention.heads, window=window, called=called, returns_tensor=attention.returns_tensor)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The attention's output, in the form the teacher's returns."""
        hidden, context, mask = self._read(args, kwargs)
        if self.window > 1:
            if mask is not None:
                raise ContractError("pooled attention takes no mask")
            context = functional.avg_pool1d(context.transpose(1, 2), min(self.window, context.shape[1]), ceil_mode=True).transpose(1, 2)
        query, key, value = self.q_proj(hidden), self.k_proj(context), self.v_proj(context)
        size = query.shape[-1] // self.heads
        query, key, value = (t.reshape(*t.shape[:2], -1, size).transpose(1, 2) for t in (query, key, value))
        key, value = (t.expand(-1, self.heads, -1, -1) for t in (key, value))
        joined = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).flatten(2)
        output = joined if self.out_proj is None else self.out_proj(joined)
        return output if self._returns_tensor else (output, None)

    def _read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor | None]:
        names = {
            "torch": ("query", "key", "value", "key_padding_mask", "need_weights", "attn_mask"),
            "diffusers": ("hidden_states", "encoder_hidden_states", "attention_mask"),
            "transformers": ("hidden_states", "attention_mask"),
        }[self._called]
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        for name in ("position_embeddings", "past_key_values", "image_rotary_emb", "temb", "key_padding_mask"):
            if given.get(name) is not None:
                raise ContractError(f"slim attention does not know what to do with {name}")
        if self._called == "torch":
            mask = given.get("attn_mask")
            if mask is not None and mask.dtype == torch.bool:
                mask = ~mask  # torch's module masks where True, the function keeps where True
            return given["query"], given["key"], mask
        hidden = given["hidden_states"]
        context = given.get("encoder_hidden_states")
        return hidden, hidden if context is None else context, given.get("attention_mask")


def _check_plain(attention: Attention) -> None:
    module = attention.module
    extra = [n for n in ("group_norm", "spatial_norm", "norm_q", "norm_k", "q_norm", "k_norm", "bias_k", "rotary_emb") if getattr(module, n, None) is not None]
    if getattr(module, "is_causal", False):
        extra.append("a causal mask")
    if isinstance(module, nn.MultiheadAttention) and not module.batch_first:
        extra.append("batch_first=False")
    if getattr(module, "residual_connection", False) or getattr(module, "rescale_output_factor", 1.0) != 1.0:
        extra.append("a residual of its own")
    if attention.fused is not None:
        extra.append("one layer for query, key and value")
    if extra:
        raise DoesNotFit(f"slim attention needs plain projections, found {', '.join(extra)}")


def _rebuilt(recipe: Reduction, teacher: nn.Module, make: Callable[[Attention], nn.Module]) -> nn.Module:
    """A copy of the block with every attention rebuilt."""
    twin = copied(teacher)
    found = list(find_attention(twin))
    if not found:
        raise DoesNotFit(f"{recipe.name} needs attention with known projections (torch, diffusers, transformers), found none in {type(teacher).__name__}")
    for attention in found:
        module = make(attention)
        if not attention.name:
            return module
        put(twin, attention.name, module)
    return twin


def _strongest_heads(out: Tensor, heads: int, keep: int) -> Tensor:
    """Indices of the hidden channels of the heads whose output weights `(width, heads * size)` have the largest norms."""
    size = out.shape[1] // heads
    if out.is_meta:
        return torch.arange(keep * size, device="meta")
    strength = out.float().reshape(-1, heads, size).square().sum((0, 2))
    chosen: Tensor = strength.topk(keep).indices.sort().values
    return (chosen[:, None] * size + torch.arange(size, device=out.device)).flatten()


def _split(module: nn.Module) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
    """The projections of torch's attention, which keeps them in one parameter, as three layers."""
    assert isinstance(module, nn.MultiheadAttention)
    if module.in_proj_weight is None:
        raise DoesNotFit("slim attention needs key and value of the query's width, found others")
    weights = module.in_proj_weight.chunk(3)
    biases: Any = module.in_proj_bias.chunk(3) if module.in_proj_bias is not None else (None, None, None)
    first, second, third = (_linear(weight, bias) for weight, bias in zip(weights, biases, strict=True))
    return first, second, third


def _mean_head(layer: nn.Linear, heads: int) -> nn.Linear:
    bias = None if layer.bias is None else layer.bias.reshape(heads, -1).mean(0)
    return _linear(layer.weight.reshape(heads, -1, layer.in_features).mean(0), bias)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device=weight.device, dtype=weight.dtype)
    layer.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())
    return layer
