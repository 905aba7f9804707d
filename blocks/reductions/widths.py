"""Structured pruning inside a block: the weakest hidden channels go, what the block reads and writes keeps its shape (Li et al., 2017).

A pair is a layer and the next one that reads its outputs channel by channel: between them only activations, pooling, dropout, batch
and group normalisation and depthwise convolutions. Pairs are told from the order in which layers were registered, and norms registered apart from
their pair from their width; the contract, which runs the
block that was made, has the last word.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd

from nas.blocks.reductions.attention_parts import is_attention
from nas.blocks.reductions.reduction import Reduction, check_fraction, copied, reduction
from nas.errors import DoesNotFit

_Dense = nn.Linear | _ConvNd
_Norm = _BatchNorm | nn.GroupNorm
_POOLING = ("MaxPool", "AvgPool", "Upsample", "Identity")
_GATED = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"))
"""Names of gated feed-forward layers: the product of the first two is what the third reads."""


@dataclass(frozen=True)
class Pair:
    """Layers that write the hidden channels, layers between that carry them, and the one that reads them; `fused`: the first writes gate and value."""

    writers: tuple[_Dense, ...]
    between: tuple[nn.Module, ...]
    reader: _Dense
    fused: bool = False

    @property
    def width(self) -> int:
        """Hidden channels."""
        return _width_in(self.reader)

    @property
    def step(self) -> int:
        """What the number of hidden channels must be a multiple of: every group norm keeps its groups."""
        return math.lcm(*(layer.num_groups for layer in self.between if isinstance(layer, nn.GroupNorm)))


@reduction
@dataclass(frozen=True)
class Channels(Reduction):
    """A fraction of the inner channels of convolutions."""

    fraction: float = 0.5

    def __post_init__(self) -> None:
        check_fraction(self, self.fraction)

    def build(self, teacher: nn.Module) -> nn.Module:
        """The teacher's block with fewer inner channels, the strongest ones."""
        return _pruned(self, teacher, _ConvNd, self.fraction)


@reduction
@dataclass(frozen=True)
class FeedForward(Reduction):
    """A fraction of the hidden units of feed-forward layers."""

    fraction: float = 0.5

    def __post_init__(self) -> None:
        check_fraction(self, self.fraction)

    def build(self, teacher: nn.Module) -> nn.Module:
        """The teacher's block with fewer hidden units, the strongest ones."""
        return _pruned(self, teacher, nn.Linear, self.fraction)


def _pruned(recipe: Reduction, teacher: nn.Module, kind: type[nn.Module], fraction: float) -> nn.Module:
    twin = copied(teacher)
    pairs = [pair for pair in find_pairs(twin) if isinstance(pair.reader, kind) and pair.width > pair.step]
    if not pairs:
        unsure, layers = _unsure_pairs(twin, kind), kind.__name__.strip("_").removesuffix("Nd")
        way_out = "which the order of layers does not tell for sure; make each pair a module and a stage of its own"
        found = f"{unsure} such pairs, {way_out}" if unsure > 1 else f"none{_obstacle(twin, kind)}"
        raise DoesNotFit(f"{recipe.name} needs two {layers} layers of which one reads what the other writes, found {found}")
    for pair in pairs:
        prune(pair, pair.step * max(1, round(fraction * pair.width / pair.step)))
    return twin


def find_pairs(root: nn.Module) -> list[Pair]:
    """All pairs inside a block, each layer at most once as a writer."""
    found: list[Pair] = []
    for parent in root.modules():
        if is_attention(parent):
            continue
        found += _gated(parent)
        for run in _runs(parent):
            found += _pairs(run)
    unique: dict[int, Pair] = {}
    for pair in found:
        unique.setdefault(id(pair.writers[0]), pair)
    return list(unique.values())


def _unsure_pairs(root: nn.Module, kind: type[nn.Module]) -> int:
    """How many pairs the widths of layers allow where `find_pairs` is not sure of any: more than two in a row, and nothing registered between them."""
    count = 0
    for parent in root.modules():
        for run in () if is_attention(parent) else _runs(parent):
            writer: _Dense | None = None
            for layer in (layer for layer in run if isinstance(layer, _Dense) and isinstance(layer, kind)):
                joined = writer is not None and _width_in(layer) > 1 and _joined(writer, layer)
                count += joined
                writer = None if joined else layer
    return count


def _obstacle(root: nn.Module, kind: type[nn.Module]) -> str:
    """What stands between two layers that would be a pair by their widths, for the message; nothing where there are no two."""
    for parent in root.modules():
        for run in () if is_attention(parent) else _runs(parent):
            dense = [k for k, layer in enumerate(run) if isinstance(layer, kind) and isinstance(layer, _Dense) and not _depthwise(layer)]
            for first, last in pairwise(dense):
                writer, reader = run[first], run[last]
                assert isinstance(writer, _Dense)
                assert isinstance(reader, _Dense)
                barred = [layer for layer in run[first + 1 : last] if isinstance(layer, nn.GroupNorm) or not _carries(layer)]
                if barred and _width_in(reader) > 1 and _joined(writer, reader):
                    return f", since {barred[0]} stands between two that would do"
    return ""


def _gated(parent: nn.Module) -> Iterator[Pair]:
    for names in _GATED:
        layers = [getattr(parent, name, None) for name in names]
        if all(isinstance(layer, nn.Linear) for layer in layers):
            gate, up, down = (layer for layer in layers if isinstance(layer, nn.Linear))
            if gate.out_features == up.out_features == down.in_features:
                yield Pair((gate, up), (), down)


def _runs(parent: nn.Module) -> Iterator[list[nn.Module]]:
    """Stretches of leaf layers in registered order; a child with several dense layers of its own ends a stretch."""
    if any(all(hasattr(parent, name) for name in names) for names in _GATED):
        return
    run: list[nn.Module] = []
    for child in _unrolled(parent):
        leaves = [leaf for leaf in child.modules() if not list(leaf.children())]
        if is_attention(child) or sum(isinstance(leaf, _Dense) for leaf in leaves) > 1:
            yield run
            run = []
        else:
            run += leaves
    yield run


def _unrolled(parent: nn.Module) -> Iterator[nn.Module]:
    for child in parent.children():
        if isinstance(parent, nn.Sequential | nn.ModuleList) and isinstance(child, nn.Sequential):
            yield from _unrolled(child)
        else:
            yield child


def _pairs(run: Sequence[nn.Module]) -> Iterator[Pair]:
    run = _without_skip(run)
    n_dense = sum(isinstance(layer, _Dense) and not _depthwise(layer) for layer in run)
    writer: _Dense | None = None
    between: list[nn.Module] = []
    for layer in run:
        if isinstance(layer, _Dense) and not _depthwise(layer):
            sure = bool(between) or n_dense == 2
            if writer is not None and sure and _joined(writer, layer):
                if n_dense == 2 and not any(isinstance(other, _Norm) for other in between):
                    between += _norms_elsewhere(run, writer, layer)
                yield Pair((writer,), tuple(between), layer, fused=_width_out(writer) == 2 * _width_in(layer))
            writer, between = (layer if getattr(layer, "groups", 1) == 1 and not getattr(layer, "transposed", False) else None), []
        elif _carries(layer):
            between.append(layer)
        else:
            writer, between = None, []


def _without_skip(run: Sequence[nn.Module]) -> Sequence[nn.Module]:
    """The run without a last 1x1 convolution that may stand beside the two wider ones before it: it reads like the first and writes like the second.

    Where it follows them instead, only their pair is found: less than could be, and nothing wrong.
    """
    dense = [layer for layer in run if isinstance(layer, _Dense) and not _depthwise(layer)]
    if len(dense) != 3 or not all(isinstance(layer, _ConvNd) for layer in dense):
        return run
    first, second, skip = dense
    wide = [max(layer.kernel_size) > 1 for layer in dense if isinstance(layer, _ConvNd)]
    beside = _width_in(skip) == _width_in(first) and _width_out(skip) == _width_out(second)
    return [layer for layer in run if layer is not skip] if wide == [True, True, False] and beside else run


def _norms_elsewhere(run: Sequence[nn.Module], writer: _Dense, reader: _Dense) -> list[nn.Module]:
    """Norms registered apart from the pair that can only be between them: as wide as the hidden channels and as nothing else of the pair."""
    hidden = _width_in(reader)
    if hidden in (_width_in(writer), _width_out(reader)):
        return []
    return [layer for layer in run if isinstance(layer, _Norm) and _width_of(layer) == hidden]


def _joined(writer: _Dense, reader: _Dense) -> bool:
    if isinstance(reader, _ConvNd) and (reader.groups != 1 or reader.transposed):
        return False
    same = isinstance(writer, nn.Linear) == isinstance(reader, nn.Linear)
    return same and _width_out(writer) in (_width_in(reader), 2 * _width_in(reader) if isinstance(reader, nn.Linear) else -1)


def _carries(layer: nn.Module) -> bool:
    if isinstance(layer, _Norm | _DropoutNd) or _depthwise(layer):
        return True
    return not any(True for _ in layer.parameters()) and (
        type(layer).__module__.startswith(("torch.nn.modules.activation", "transformers.activations")) or type(layer).__name__.startswith(_POOLING)
    )


def _depthwise(layer: nn.Module) -> bool:
    return isinstance(layer, _ConvNd) and layer.groups > 1 and layer.groups == layer.in_channels == layer.out_channels


def _width_of(norm: _Norm) -> int:
    return norm.num_channels if isinstance(norm, nn.GroupNorm) else norm.num_features


def _width_in(layer: _Dense) -> int:
    return layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels


def _width_out(layer: _Dense) -> int:
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


def prune(pair: Pair, keep: int) -> None:
    """Keeps the `keep` hidden channels whose weights, written and read, have the largest norms; in place."""
    kept = _strongest(pair, keep)
    for writer in pair.writers:
        take_outputs(writer, torch.cat([kept, kept + pair.width]) if pair.fused else kept)
    for layer in pair.between:
        if isinstance(layer, _ConvNd):
            take_outputs(layer, kept)
            layer.groups = layer.in_channels = keep
        elif isinstance(layer, _Norm):
            _take_normalised(layer, kept)
    take_inputs(pair.reader, kept)


def _strongest(pair: Pair, keep: int) -> Tensor:
    read = pair.reader.weight.detach()
    if read.is_meta:
        return torch.arange(keep, device="meta")
    strength = read.float().transpose(0, 1).flatten(1).norm(dim=1)
    for writer in pair.writers:
        strength = strength * writer.weight.detach().float().flatten(1).norm(dim=1)[: pair.width]
    kept: Tensor = strength.topk(keep).indices.sort().values
    return kept


def take_outputs(layer: _Dense, kept: Tensor) -> None:
    """Keeps these output channels of a layer, in place."""
    layer.weight = nn.Parameter(layer.weight.detach()[kept].clone())
    if layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias.detach()[kept].clone())
    if isinstance(layer, nn.Linear):
        layer.out_features = len(kept)
    else:
        layer.out_channels = len(kept)


def take_inputs(layer: _Dense, kept: Tensor) -> None:
    """Keeps these input channels of a layer, in place."""
    layer.weight = nn.Parameter(layer.weight.detach()[:, kept].clone())
    if isinstance(layer, nn.Linear):
        layer.in_features = len(kept)
    else:
        layer.in_channels = len(kept)


def _take_normalised(norm: _Norm, kept: Tensor) -> None:
    setattr(norm, "num_channels" if isinstance(norm, nn.GroupNorm) else "num_features", len(kept))
    for name in ("weight", "bias"):
        if getattr(norm, name) is not None:
            setattr(norm, name, nn.Parameter(getattr(norm, name).detach()[kept].clone()))
    for name in ("running_mean", "running_var"):
        if getattr(norm, name, None) is not None:
            setattr(norm, name, getattr(norm, name)[kept].clone())
