"""Low-rank factors of linear layers and convolutions, from the SVD of their weights (Denton et al., 2014)."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from nas.blocks.reductions.reduction import Reduction, check_fraction, reduction, replaced, set_weight, size


@reduction
@dataclass(frozen=True)
class LowRank(Reduction):
    """Two thinner layers of a fraction of the full rank in place of each layer that gets smaller by it."""

    fraction: float = 0.25

    def __post_init__(self) -> None:
        check_fraction(self, self.fraction)

    def build(self, teacher: nn.Module) -> nn.Module:
        """The teacher's block with factored layers."""
        return replaced(self, teacher, self._factored, "a linear layer or convolution (groups 1) that two of lower rank make smaller")

    def _factored(self, layer: nn.Module) -> nn.Module | None:
        if isinstance(layer, nn.Linear):
            rank = max(1, round(self.fraction * min(layer.in_features, layer.out_features)))
            first = nn.Linear(layer.in_features, rank, bias=False, device=layer.weight.device, dtype=layer.weight.dtype)
            second: nn.Module = nn.Linear(rank, layer.out_features, layer.bias is not None, device=layer.weight.device, dtype=layer.weight.dtype)
            return _if_smaller(layer, first, second, rank)
        if isinstance(layer, _ConvNd) and layer.groups == 1 and not layer.transposed:
            rank = max(1, round(self.fraction * min(layer.out_channels, layer.weight[0].numel())))
            return _if_smaller(layer, like(layer, layer.in_channels, rank, bias=False), pointwise(layer, rank, layer.out_channels), rank)
        return None


def like(layer: _ConvNd, channels_in: int, channels_out: int, groups: int = 1, *, bias: bool = True) -> _ConvNd:
    """A convolution of the same kernel, stride and padding between other channels."""
    kind: Any = type(layer)  # Conv1d, 2d, 3d, which share these arguments
    made: _ConvNd = kind(
        channels_in, channels_out, layer.kernel_size, layer.stride, layer.padding, layer.dilation, groups,
        bias, layer.padding_mode, device=layer.weight.device, dtype=layer.weight.dtype,
    )  # fmt: skip
    return made


def pointwise(layer: _ConvNd, channels_in: int, channels_out: int, *, bias: bool | None = None) -> _ConvNd:
    """A 1 x 1 convolution of the same dimension; with a bias where the layer has one."""
    kind: Any = type(layer)
    made: _ConvNd = kind(
        channels_in, channels_out, 1, bias=(layer.bias is not None) if bias is None else bias,
        device=layer.weight.device, dtype=layer.weight.dtype,
    )  # fmt: skip
    return made


def _if_smaller(layer: nn.Linear | _ConvNd, first: nn.Linear | _ConvNd, second: nn.Module, rank: int) -> nn.Module | None:
    if size(first) + size(second) >= size(layer):
        return None
    assert isinstance(second, nn.Linear | _ConvNd)
    if not layer.weight.is_meta:
        left, right = factors(layer.weight.detach().flatten(1), rank)
        set_weight(first, right)
        set_weight(second, left, layer.bias)
    return nn.Sequential(first, second)


def factors(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """`(out, rank)` and `(rank, in)` whose product is the nearest matrix of that rank to `weight` `(out, in)`."""
    u, s, v = torch.linalg.svd(weight.float(), full_matrices=False)
    root = s[:rank].sqrt()
    return u[:, :rank] * root, root[:, None] * v[:rank]
