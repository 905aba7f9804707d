"""Units that surrogate stages are made of, each started from the teacher's unit it stands for.

Residual units are called `(x, temb) -> x`, attention units `(x, encoder_hidden_states, return_dict) -> (x,)`, as diffusers' own.
Narrow units keep the teacher's strongest inner channels; separable ones start from the best rank-1 factors (SVD) of its kernels.
"""

import copy
from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn

from nas.errors import DoesNotFit


class Projection(nn.Module):
    """A 1x1 convolution in the place of a residual unit; blind to the time."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size=1)

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        del temb
        projected: Tensor = self.conv(x)
        return projected


class SeparableConv2d(nn.Sequential):
    """A depthwise 3x3 and a pointwise convolution in the place of a dense 3x3 one."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, padding: int = 1) -> None:
        super().__init__(
            nn.Conv2d(in_channels, in_channels, kernel_size=3, stride=stride, padding=padding, groups=in_channels),
            nn.Conv2d(in_channels, out_channels, kernel_size=1),
        )

    @classmethod
    def of(cls, conv: nn.Conv2d) -> "SeparableConv2d":
        """The best rank-1 fit to each input channel's kernels, `(out, 9) ~ pointwise (out) x depthwise (9)`."""
        with torch.device("meta"):
            separable = cls(conv.in_channels, conv.out_channels, conv.stride[0], int(conv.padding[0]))
        separable = separable.to(conv.weight.dtype).to_empty(device=conv.weight.device)
        depthwise, pointwise = separable
        assert isinstance(depthwise, nn.Conv2d)
        assert isinstance(pointwise, nn.Conv2d)
        if not conv.weight.is_meta:
            with torch.no_grad():
                for first in range(0, conv.in_channels, _AT_ONCE):
                    some = slice(first, first + _AT_ONCE)
                    kernels = conv.weight[:, some].float().flatten(2).transpose(0, 1)  # (some, out, 9)
                    u, sigma, v = torch.linalg.svd(kernels, full_matrices=False)
                    scale = sigma[:, 0].sqrt()
                    depthwise.weight[some] = (v[:, 0] * scale[:, None]).view(-1, 1, 3, 3)
                    pointwise.weight[:, some] = (u[:, :, 0] * scale[:, None]).T[:, :, None, None]
                nn.init.zeros_(depthwise.bias)  # type: ignore[arg-type]
                pointwise.bias.copy_(conv.bias)  # type: ignore[union-attr,arg-type]
        return separable


_AT_ONCE = 64
"""Input channels whose kernels are factorised together: all at once would take several times the convolution's memory."""


class SelfAttention2D(nn.Module):
    """The self-attention of a transformer unit alone: no cross-attention, no MLP."""

    def __init__(self, source: Transformer2DModel) -> None:
        super().__init__()
        first: Any = source.transformer_blocks[0]
        self.norm, self.proj_in, self.proj_out = (copy.deepcopy(part) for part in (source.norm, source.proj_in, source.proj_out))
        self.norm1, self.attn1 = copy.deepcopy(first.norm1), copy.deepcopy(first.attn1)

    def forward(self, x: Tensor, encoder_hidden_states: Tensor | None = None, return_dict: bool = False) -> tuple[Tensor]:
        del encoder_hidden_states, return_dict
        batch, _, height, width = x.shape
        h = _project(self.proj_in, self.norm(x)).flatten(2).transpose(1, 2)
        h = h + self.attn1(self.norm1(h))
        h = h.transpose(1, 2).reshape(batch, -1, height, width)
        return (x + _project(self.proj_out, h),)


def _project(layer: nn.Module, x: Tensor) -> Tensor:
    """A 1x1 convolution, or a linear layer over the channels, `(B, C, H, W) -> (B, C', H, W)`."""
    projected: Tensor = layer(x.movedim(1, -1)).movedim(-1, 1) if isinstance(layer, nn.Linear) else layer(x)
    return projected


def groups_like(norm: nn.GroupNorm, channels: int) -> int:
    """How many groups give `channels` channels groups of about the norm's own size (never smaller: a group of one value normalises to nothing)."""
    most = max(1, channels * norm.num_groups // norm.num_channels)
    return next(n for n in range(most, 0, -1) if channels % n == 0)


def like_resnet(source: ResnetBlock2D, in_channels: int, inner: int) -> ResnetBlock2D:
    """A new residual block with the source's settings, dtype and output width, other input and inner widths; its weights are still to be written."""
    with torch.device("meta"):
        block = ResnetBlock2D(
            in_channels=in_channels,
            out_channels=inner,
            conv_2d_out_channels=source.conv2.out_channels,
            temb_channels=source.time_emb_proj.in_features,
            groups=groups_like(source.norm1, in_channels),
            groups_out=groups_like(source.norm2, inner),
            eps=source.norm1.eps,
            time_embedding_norm=source.time_embedding_norm,
            skip_time_act=source.skip_time_act,
            output_scale_factor=source.output_scale_factor,
            dropout=source.dropout.p,
        )
    block.nonlinearity = copy.deepcopy(source.nonlinearity)
    weight = source.conv1.weight
    return block.to(weight.dtype).to_empty(device=weight.device)


def bottleneck(source: ResnetBlock2D, divisor: int) -> ResnetBlock2D:
    """The residual block through `1 / divisor` of its inner width: the channels that weigh most in its second convolution."""
    inner = source.conv1.out_channels // divisor
    if inner < 1 or source.conv1.out_channels % divisor:
        raise DoesNotFit(f"a residual block through 1/{divisor} of its width needs a multiple of {divisor} channels, got {source.conv1.out_channels}")
    narrow = like_resnet(source, source.in_channels, inner)
    if source.conv1.weight.is_meta:
        return narrow
    strength = source.conv2.weight.float().flatten(2).norm(dim=(0, 2)) * source.norm2.weight.float().abs()
    keep = strength.topk(inner).indices.sort().values
    keep_time = torch.cat([keep, keep + source.conv1.out_channels]) if source.time_embedding_norm == "scale_shift" else keep
    _inherit(narrow.norm1, source.norm1)
    _inherit(narrow.conv1, source.conv1, rows=keep)
    _inherit(narrow.time_emb_proj, source.time_emb_proj, rows=keep_time)
    _inherit(narrow.norm2, source.norm2, rows=keep)
    _inherit(narrow.conv2, source.conv2, columns=keep)
    if source.conv_shortcut is not None:
        _inherit(narrow.conv_shortcut, source.conv_shortcut)
    return narrow


def separable(source: ResnetBlock2D) -> ResnetBlock2D:
    """The residual block with both 3x3 convolutions depthwise-separable."""
    light: dict[int, Any] = {id(conv): SeparableConv2d.of(conv) for conv in (source.conv1, source.conv2)}
    return copy.deepcopy(source, light)  # with these in the places of the convolutions, which are not copied


def projection(source: ResnetBlock2D) -> Projection:
    """The residual block's straight path: its shortcut, or the identity."""
    unit = Projection(source.in_channels, source.conv2.out_channels)
    if source.conv_shortcut is not None:
        _inherit(unit.conv, source.conv_shortcut)
    else:
        nn.init.dirac_(unit.conv.weight)
        nn.init.zeros_(unit.conv.bias)  # type: ignore[arg-type]
    if source.output_scale_factor != 1:
        with torch.no_grad():
            for parameter in unit.parameters():
                parameter.div_(source.output_scale_factor)
    return unit


def merged(sources: list[ResnetBlock2D]) -> ResnetBlock2D:
    """One residual block that reads what a row of them reads, `(h, skip, skip, ...)` of the up path concatenated.

    Its shortcut is the row's straight path composed; its first convolution reads the hidden state and the first skip as the
    first block does and every other skip as that skip's own block does. What follows is the last block's own: units are made from copies of this.
    """
    out = sources[0].conv2.out_channels
    widths = [sources[0].in_channels, *(source.in_channels - out for source in sources[1:])]
    block = like_resnet(sources[0], sum(widths), out)
    if sources[0].conv1.weight.is_meta:
        return block
    pairs = list(zip(sources, widths, strict=True))
    with torch.no_grad():
        first = 0
        for source, width in pairs:
            block.conv1.weight[:, first : first + width] = source.conv1.weight[:, -width:]
            first += width
        block.conv1.bias.copy_(sources[0].conv1.bias)
        block.norm1.weight.copy_(torch.cat([source.norm1.weight[-width:] for source, width in pairs]))
        block.norm1.bias.copy_(torch.cat([source.norm1.bias[-width:] for source, width in pairs]))
        weight, bias = straight_path(sources)
        block.conv_shortcut.weight.copy_(weight[:, :, None, None])
        block.conv_shortcut.bias.copy_(bias)
    for name in ("time_emb_proj", "norm2", "conv2"):
        setattr(block, name, getattr(sources[-1], name))
    return block


def straight_path(sources: list[ResnetBlock2D]) -> tuple[Tensor, Tensor]:
    """The linear map `(out, total in)` and offset `(out,)` from all inputs of a row of residual blocks to its output, residues left out."""
    weight, bias = _shortcut(sources[0])
    for source in sources[1:]:
        step, offset = _shortcut(source)
        through, skip = step[:, : weight.shape[0]], step[:, weight.shape[0] :]
        weight, bias = torch.cat([through @ weight, skip], dim=1), through @ bias + offset
    return weight, bias


def _shortcut(source: ResnetBlock2D) -> tuple[Tensor, Tensor]:
    if source.conv_shortcut is None:
        identity = torch.eye(source.in_channels).to(source.conv1.weight)
        return identity, torch.zeros_like(identity[0])
    return source.conv_shortcut.weight.detach()[:, :, 0, 0], source.conv_shortcut.bias.detach()


def narrow_transformer(source: Transformer2DModel, divisor: int, *, plain_mlp: bool) -> Transformer2DModel:
    """The transformer at `1 / divisor` of its inner width: fewer heads, or narrower ones when their number does not divide.

    The inner channels kept are those with the strongest way out (`proj_out`), head by head; `plain_mlp` replaces GEGLU by GELU,
    which starts from the gate's half.
    """
    heads, width = source.config.num_attention_heads, source.config.attention_head_dim
    if (heads * width) % divisor or (heads % divisor and width % divisor):
        raise DoesNotFit(f"a transformer at 1/{divisor} of its width needs heads or their width in multiples of {divisor}, got {heads} x {width}")
    fewer = heads % divisor == 0
    config = {key: value for key, value in source.config.items() if not key.startswith("_")}
    config |= {
        "num_attention_heads": heads // divisor if fewer else heads,
        "attention_head_dim": width if fewer else width // divisor,
        "norm_num_groups": source.norm.num_groups,
        "activation_fn": "gelu" if plain_mlp else source.config.activation_fn,
    }
    narrow = Transformer2DModel(**config)
    if not source.proj_out.weight.is_meta:
        keep = _strongest_inner_channels(source, divisor, whole_heads=fewer)
        _inherit(narrow.norm, source.norm)
        _inherit(narrow.proj_in, source.proj_in, rows=keep)
        _inherit(narrow.proj_out, source.proj_out, columns=keep)
        for new, old in zip(narrow.transformer_blocks, source.transformer_blocks, strict=True):
            _inherit_transformer_block(new, old, keep)
    return narrow


def _strongest_inner_channels(source: Transformer2DModel, divisor: int, *, whole_heads: bool) -> Tensor:
    """Indices `(inner / divisor,)`, ascending: whole heads, or the same number of channels in each head."""
    heads, width = source.config.num_attention_heads, source.config.attention_head_dim
    strength = source.proj_out.weight.float().flatten(1).norm(dim=0).view(heads, width)
    channels = torch.arange(heads * width, device=strength.device).view(heads, width)
    if whole_heads:
        return channels[strength.norm(dim=1).topk(heads // divisor).indices.sort().values].flatten()
    return channels.gather(1, strength.topk(width // divisor, dim=1).indices.sort(dim=1).values).flatten()


def _inherit_transformer_block(new: BasicTransformerBlock, old: BasicTransformerBlock, keep: Tensor) -> None:
    for name in ("norm1", "norm2", "norm3"):
        if getattr(old, name) is not None:
            _inherit(getattr(new, name), getattr(old, name), rows=keep)
    _inherit_attention(new.attn1, old.attn1, keep, text=old.only_cross_attention)
    if old.attn2 is not None:
        _inherit_attention(new.attn2, old.attn2, keep, text=not old.double_self_attention)
    first, last = old.ff.net[0].proj, old.ff.net[2]
    gated = first.out_features != last.in_features
    inner: int = last.in_features
    units = torch.linspace(0, inner - 1, new.ff.net[2].in_features, device=keep.device).round().long()
    still_gated = new.ff.net[0].proj.out_features != new.ff.net[2].in_features
    gates = units + inner if gated else units
    _inherit(new.ff.net[0].proj, first, rows=torch.cat([units, gates]) if still_gated else gates, columns=keep)
    _inherit(new.ff.net[2], last, rows=keep, columns=units)


def _inherit_attention(new: Attention, old: Attention, keep: Tensor, *, text: bool) -> None:
    _inherit(new.to_q, old.to_q, rows=keep, columns=keep)
    for name in ("to_k", "to_v"):
        _inherit(getattr(new, name), getattr(old, name), rows=keep, columns=None if text else keep)
    _inherit(new.to_out[0], old.to_out[0], rows=keep, columns=keep)


def _inherit(new: nn.Module, old: nn.Module, rows: Tensor | None = None, columns: Tensor | None = None) -> None:
    """Copies weight and bias, of the given output rows and input columns only."""
    with torch.no_grad():
        for name, parameter in new.named_parameters(recurse=False):
            kept: Tensor = getattr(old, name)
            kept = kept if rows is None else kept[rows]
            kept = kept[:, columns] if columns is not None and kept.ndim > 1 else kept
            parameter.copy_(kept)
