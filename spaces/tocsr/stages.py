"""The three kinds of stage of a diffusion U-Net, for the teacher's blocks and for surrogate blocks alike.

A stage is a row of layers, each a residual unit followed by an attention unit (either may be missing), and a sampler. Submodules
have diffusers' names (`resnets`, `attentions`, `downsamplers`, `upsamplers`), so the state dict of a network made of teacher
stages is the stock one. All stages are called as `stage(h, temb, text, *skips)`:

    h     (B, C, H, W)  hidden state            temb  (B, T)     time embedding
    text  (B, L, E)     encoder hidden states   skips (B, C', H, W) each
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nas.errors import InputError

Layer = tuple[nn.Module | None, nn.Module | None]
"""A residual unit `(x, temb) -> x` and an attention unit `(x, encoder_hidden_states=..., return_dict=False) -> (x,)`."""


class _Layers(nn.Module):
    """Layers in order; checkpoints residual units as diffusers' blocks do (attention units checkpoint themselves)."""

    _gradient_checkpointing_func: Callable[..., Any]

    def __init__(self, layers: Sequence[Layer]) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([resnet for resnet, _ in layers])  # type: ignore[misc]  # None holds a layer's place
        self.attentions = nn.ModuleList([attention for _, attention in layers])  # type: ignore[misc]
        self.gradient_checkpointing = False

    @property
    def layers(self) -> list[Layer]:
        """The pairs of units."""
        return list(zip(self.resnets, self.attentions, strict=True))

    def _layer(self, index: int, h: Tensor, temb: Tensor, text: Tensor) -> Tensor:
        resnet, attention = self.resnets[index], self.attentions[index]
        if resnet is not None:
            checkpointed = self.gradient_checkpointing and torch.is_grad_enabled()
            h = self._gradient_checkpointing_func(resnet, h, temb) if checkpointed else resnet(h, temb)
        if attention is not None:
            h = attention(h, encoder_hidden_states=text, return_dict=False)[0]
        return h


class DownStage(_Layers):
    """`(h, temb, text) -> skips`: `n_skips` layer outputs and, with a sampler, the smaller hidden state; the next stage reads the last.

    With fewer layers than skips the last layer's output stands for the missing ones.
    """

    def __init__(self, layers: Sequence[Layer], sampler: nn.Module | None, n_skips: int) -> None:
        super().__init__(layers)
        self.downsamplers = None if sampler is None else nn.ModuleList([sampler])
        self.n_skips = n_skips

    @property
    def sampler(self) -> nn.Module | None:
        return None if self.downsamplers is None else self.downsamplers[0]

    def forward(self, h: Tensor, temb: Tensor, text: Tensor) -> tuple[Tensor, ...]:
        skips: list[Tensor] = []
        for index in range(len(self.resnets)):
            h = self._layer(index, h, temb, text)
            skips.append(h)
        skips += [h] * (self.n_skips - len(skips))
        if self.downsamplers is not None:
            skips.append(self.downsamplers[0](h))
        return tuple(skips)


class MidStage(_Layers):
    """`(h, temb, text) -> h` at constant shape."""

    sampler = None

    def forward(self, h: Tensor, temb: Tensor, text: Tensor) -> Tensor:
        for index in range(len(self.resnets)):
            h = self._layer(index, h, temb, text)
        return h


class UpStage(_Layers):
    """`(h, temb, text, *skips) -> h`: layer `i` first appends the skips `takes[i]` to its channels; then `h` is upsampled.

    The `n_skips` skips come in the order in which the teacher consumes them. With a sampler one more follows them, the next stage's first:
    it gives the size to upsample to, which is not twice the present one when a side is odd.
    """

    def __init__(self, layers: Sequence[Layer], sampler: nn.Module | None, takes: Sequence[tuple[int, ...]], n_skips: int) -> None:
        super().__init__(layers)
        self.upsamplers = None if sampler is None else nn.ModuleList([sampler])
        self.takes = tuple(takes)
        self.n_skips = n_skips

    @property
    def sampler(self) -> nn.Module | None:
        return None if self.upsamplers is None else self.upsamplers[0]

    def forward(self, h: Tensor, temb: Tensor, text: Tensor, *skips: Tensor) -> Tensor:
        for index, taken in enumerate(self.takes):
            h = self._layer(index, torch.cat([h, *(skips[k] for k in taken)], dim=1), temb, text)
        if self.upsamplers is not None:
            h = self.upsamplers[0](h, skips[-1].shape[-2:])
        return h


Stage = DownStage | MidStage | UpStage


def stage_of(block: nn.Module) -> Stage:
    """The stage that does what a diffusers block does, on the block's own units; a stage is returned as it is."""
    if isinstance(block, Stage):
        return block
    name = type(block).__name__
    if name not in _STAGES:
        raise InputError(f"a U-Net block must be one of {', '.join(_STAGES)}, got {name}; this space cannot cut such a teacher")
    resnets = list(block.resnets)  # type: ignore[arg-type]
    attentions = list(getattr(block, "attentions", None) or [])
    layers = list(zip(resnets, attentions + [None] * (len(resnets) - len(attentions)), strict=True))
    return _STAGES[name](block, layers)


def _down(block: nn.Module, layers: list[Layer]) -> DownStage:
    samplers: Any = block.downsamplers
    return DownStage(layers, samplers[0] if samplers else None, n_skips=len(layers))


def _mid(block: nn.Module, layers: list[Layer]) -> MidStage:
    del block
    return MidStage(layers)


def _up(block: nn.Module, layers: list[Layer]) -> UpStage:
    samplers: Any = block.upsamplers
    return UpStage(layers, samplers[0] if samplers else None, [(k,) for k in range(len(layers))], n_skips=len(layers))


_STAGES: dict[str, Callable[[nn.Module, list[Layer]], Stage]] = {
    "DownBlock2D": _down,
    "CrossAttnDownBlock2D": _down,
    "UNetMidBlock2DCrossAttn": _mid,
    "UpBlock2D": _up,
    "CrossAttnUpBlock2D": _up,
}
