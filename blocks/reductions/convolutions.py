"""Cheaper convolutions: depthwise-separable, and through a narrow middle."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from nas.blocks.reductions.low_rank import like, pointwise
from nas.blocks.reductions.reduction import Reduction, check_fraction, reduction, replaced, set_weight, size

_NEEDS = "a convolution with a kernel above 1 and groups 1 that gets smaller by it"


@reduction
@dataclass(frozen=True)
class Separable(Reduction):
    """A depthwise and a 1 x 1 convolution in place of each k x k one; the nearest such pair to begin with."""

    def build(self, teacher: nn.Module) -> nn.Module:
        """The teacher's block with separable convolutions."""
        return replaced(self, teacher, self._separated, _NEEDS)

    def _separated(self, layer: nn.Module) -> nn.Module | None:
        if not _spatial(layer):
            return None
        assert isinstance(layer, _ConvNd)
        depthwise = like(layer, layer.in_channels, layer.in_channels, layer.in_channels, bias=False)
        mixing = pointwise(layer, layer.in_channels, layer.out_channels)
        if size(depthwise) + size(mixing) >= size(layer):
            return None
        if not layer.weight.is_meta:
            spatial, channels = nearest_separable(layer.weight.detach())
            set_weight(depthwise, spatial)
            set_weight(mixing, channels, layer.bias)
        return nn.Sequential(depthwise, mixing)


@reduction
@dataclass(frozen=True)
class Bottleneck(Reduction):
    """Each k x k convolution at a fraction of its width, between two 1 x 1 convolutions; from the weight's Tucker factors."""

    fraction: float = 0.25

    def __post_init__(self) -> None:
        check_fraction(self, self.fraction)

    def build(self, teacher: nn.Module) -> nn.Module:
        """The teacher's block with narrow convolutions."""
        return replaced(self, teacher, self._narrowed, _NEEDS)

    def _narrowed(self, layer: nn.Module) -> nn.Module | None:
        if not _spatial(layer):
            return None
        assert isinstance(layer, _ConvNd)
        width_in, width_out = (max(1, round(self.fraction * channels)) for channels in (layer.in_channels, layer.out_channels))
        parts = (
            pointwise(layer, layer.in_channels, width_in, bias=False),
            like(layer, width_in, width_out, bias=False),
            pointwise(layer, width_out, layer.out_channels),
        )
        if sum(map(size, parts)) >= size(layer):
            return None
        if not layer.weight.is_meta:
            into, core, out = tucker(layer.weight.detach(), width_in, width_out)
            for part, weight, bias in zip(parts, (into, core, out), (None, None, layer.bias), strict=True):
                set_weight(part, weight, bias)
        return nn.Sequential(*parts)


def _spatial(layer: nn.Module) -> bool:
    return isinstance(layer, _ConvNd) and layer.groups == 1 and not layer.transposed and max(layer.kernel_size) > 1


def nearest_separable(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Kernels `(in, k...)` and channel weights `(out, in)` of the nearest separable convolution to `weight` `(out, in, k...)`."""
    u, s, v = torch.linalg.svd(weight.float().flatten(2).transpose(0, 1), full_matrices=False)  # (in, out, k), one matrix an input channel
    root = s[:, 0].sqrt()
    return (v[:, 0] * root[:, None]).reshape(weight.shape[1:]), (u[:, :, 0] * root[:, None]).T


def tucker(weight: Tensor, width_in: int, width_out: int) -> tuple[Tensor, Tensor, Tensor]:
    """`(width_in, in)`, `(width_out, width_in, k...)` and `(out, width_out)`: the weight's projection on its main channel directions."""
    full = weight.float().flatten(2)
    out = torch.linalg.svd(full.flatten(1), full_matrices=False)[0][:, :width_out]
    into = torch.linalg.svd(full.transpose(0, 1).flatten(1), full_matrices=False)[0][:, :width_in]
    out, into = (torch.nn.functional.pad(m, (0, w - m.shape[1])) for m, w in ((out, width_out), (into, width_in)))
    core = torch.einsum("oik,or,is->rsk", full, out, into)
    return into.T, core.reshape(width_out, width_in, *weight.shape[2:]), out
