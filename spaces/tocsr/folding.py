"""A text context that never changes, folded into a network: cross-attention keeps its keys and values instead of the projections that make them.

With `T` tokens of width `D` a cross-attention of inner width `N` loses 2 N D weights and 2 T N D multiply-adds and gains 2 T N numbers.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from nas.errors import InputError


class FoldedProjection(nn.Module):
    """Keys or values `(1, T, N)` of the fixed context, in the place of a projection; given any text of a batch it returns them for each sample."""

    def __init__(self, tokens: int, features: int) -> None:
        super().__init__()
        self.states = nn.Parameter(torch.zeros(1, tokens, features))

    def forward(self, text: Tensor) -> Tensor:
        return self.states.repeat(len(text), 1, 1)


@dataclass(frozen=True, slots=True)
class Saved:
    """What folding takes away."""

    params: int
    macs: int


def cross_attentions(network: nn.Module) -> Iterator[Attention]:
    """The attention modules that read text."""
    for module in network.modules():
        if isinstance(module, Attention) and module.is_cross_attention:
            yield module


def reserve(network: nn.Module, tokens: int) -> None:
    """Replaces the projections by folded ones of `tokens` zeros, whose values are to be loaded.

    Raises:
        InputError: no token.
    """
    if tokens < 1:
        raise InputError(f"a folded context must have at least 1 token, got {tokens}")
    for attention in cross_attentions(network):
        for name in ("to_k", "to_v"):
            setattr(attention, name, FoldedProjection(tokens, getattr(attention, name).out_features).to(attention.to_q.weight))


@torch.no_grad()
def fold(network: nn.Module, context: Tensor) -> Saved:
    """Folds a context `(1, T, D)` into the network, which must not have one yet; its output for that context stays what it was."""
    before = sum(parameter.numel() for parameter in network.parameters())
    projected = [[getattr(attention, name)(context.to(attention.to_q.weight)) for name in ("to_k", "to_v")] for attention in cross_attentions(network)]
    macs = sum(context.shape[1] * getattr(a, name).weight.numel() for a in cross_attentions(network) for name in ("to_k", "to_v"))
    reserve(network, context.shape[1])
    for attention, states in zip(cross_attentions(network), projected, strict=True):
        for name, state in zip(("to_k", "to_v"), states, strict=True):
            getattr(attention, name).states.copy_(state)
    return Saved(before - sum(parameter.numel() for parameter in network.parameters()), macs)
