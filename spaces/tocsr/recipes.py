"""Recipes: how a surrogate stage is made from the teacher's stage.

A layer is written as residual unit and attention unit, either of which may be missing:

    R   the teacher's residual block          A    its transformer
    B2  through 1/2 of its inner width        S    the transformer's self-attention only
    D   depthwise-separable                   a2   at 1/2 of its inner width; a2f with a plain GELU MLP
    P   1x1 projection

`("RA", "R")` is a stage of two layers. R, A and S inherit the teacher's weights as they are, the others start from parts of them.
With fewer layers than the teacher, up stages keep its first and its last layers (with their skips), the others its first.
"""

import copy
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from torch import nn

from nas.errors import DoesNotFit, InputError, did_you_mean
from nas.spaces.tocsr import units
from nas.spaces.tocsr.stages import DownStage, Layer, MidStage, Stage, UpStage

LEGEND = (
    "layers in order, each R (residual block), B2/B4 (through 1/2, 1/4 of its width), D (depthwise-separable) or P (1x1 projection), then A (transformer), "
    "S (its self-attention only) or a4 (at 1/4 of its width; f: plain MLP), if any; cat: one layer reads all skips; +plain, +separable: the sampler; "
    "id: handed through"
)
"""How to read the names of recipes, for people."""

Sampler = Literal["keep", "separable", "plain"]

_LAYER = re.compile(r"(?P<residual>[RDP]|B[1-9]\d*)?(?P<attention>[AS]|a[1-9]\d*f?)?")

_RESIDUAL: dict[str, Callable[[ResnetBlock2D, int], nn.Module]] = {
    "R": lambda source, _: copy.deepcopy(source),
    "B": units.bottleneck,
    "D": lambda source, _: units.separable(source),
    "P": lambda source, _: units.projection(source),
}


@dataclass(frozen=True, slots=True)
class StageRecipe:
    """Layers and sampler of a surrogate stage.

    Attributes:
        layers: one text a layer, in the notation above; none at all hands the hidden state through.
        sampler: keep the teacher's convolution, make it separable, or resize without parameters (average pooling, nearest neighbour).
        merge: an up stage of one layer that reads all skips at once.
    """

    layers: tuple[str, ...]
    sampler: Sampler = "keep"
    merge: bool = False

    def __post_init__(self) -> None:
        for layer in self.layers:
            if not layer or _LAYER.fullmatch(layer) is None:
                raise InputError(f"a layer must read like 'RA', 'B4a2f', 'D' or 'S', got '{layer}'")
        if self.sampler not in _SAMPLERS:
            raise InputError(f"unknown sampler '{self.sampler}'{did_you_mean(self.sampler, _SAMPLERS)}")
        if self.merge and len(self.layers) != 1:
            raise InputError(f"a recipe that merges skips has one layer, got {len(self.layers)}")

    @property
    def name(self) -> str:
        """A short name such as `RAR`, `catB4a4f`, `id`; `+plain` or `+separable` tell the sampler."""
        text = "cat" * self.merge + "".join(self.layers) or "id"
        return text if self.sampler == "keep" or not self.layers else f"{text}+{self.sampler}"

    @property
    def spec(self) -> dict[str, Any]:
        """The recipe as JSON values; `StageRecipe.of` reads it back."""
        return {"layers": list(self.layers), "sampler": self.sampler, "merge": self.merge}

    @classmethod
    def of(cls, spec: Mapping[str, Any]) -> "StageRecipe":
        """The recipe that wrote this spec."""
        if set(spec) != {"layers", "sampler", "merge"}:
            raise InputError(f"a recipe's spec must have the keys layers, sampler, merge, got {', '.join(sorted(spec))}")
        return cls(tuple(spec["layers"]), spec["sampler"], bool(spec["merge"]))

    def build(self, teacher: nn.Module) -> Stage:
        """The surrogate stage, on the teacher's device and dtype, trainable; shares no parameter with the teacher.

        Raises:
            DoesNotFit: the stage has no attention, too few layers, or other widths than the recipe needs, or the recipe is all of it.
        """
        if not isinstance(teacher, Stage):
            raise InputError(f"a stage recipe needs a stage of a U-Net, got {type(teacher).__name__}")
        self._check(teacher)
        weight = next(teacher.parameters())
        with torch.device(weight.device):
            sources = self._sources(teacher)
            layers = [_layer(text, *source) for text, source in zip(self.layers, sources, strict=True)]
            sampler = None if teacher.sampler is None else _SAMPLERS[self.sampler](teacher.sampler)
        built = self._assemble(teacher, layers, sampler)
        return built.to(weight.dtype).requires_grad_(True).train(teacher.training)

    def _check(self, teacher: Stage) -> None:
        whole = ["R" + "A" * (attention is not None) for _, attention in teacher.layers]
        if self.layers == tuple(whole) and (self.sampler == "keep" or teacher.sampler is None):
            raise DoesNotFit(f"recipe '{self.name}' is the whole stage; choice 0 keeps the teacher's block")
        if self.merge and not isinstance(teacher, UpStage):
            raise DoesNotFit(f"recipe '{self.name}' merges skips, which only up stages read")
        if len(self.layers) > len(whole):
            raise DoesNotFit(f"recipe '{self.name}' has {len(self.layers)} layers, the stage only {len(whole)}")
        if teacher.sampler is None and self.sampler != "keep" and self.layers:
            raise DoesNotFit(f"recipe '{self.name}' changes the sampler, and the stage has none")
        if not self.layers:
            _check_handing_through(teacher)

    def _sources(self, teacher: Stage) -> list[Layer]:
        """The teacher's layer that each of this recipe's layers starts from."""
        if self.merge:
            resnets = [resnet for resnet, _ in teacher.layers]
            return [(units.merged(resnets), teacher.layers[-1][1])]
        return [teacher.layers[k] for k in self._kept(teacher)]

    def _kept(self, teacher: Stage) -> list[int]:
        count, total = len(self.layers), len(teacher.layers)
        if isinstance(teacher, UpStage) and 1 < count < total:
            return [*range(count - 1), total - 1]
        return list(range(count))

    def _assemble(self, teacher: Stage, layers: list[Layer], sampler: nn.Module | None) -> Stage:
        if isinstance(teacher, DownStage):
            return DownStage(layers, sampler, teacher.n_skips)
        if isinstance(teacher, MidStage):
            return MidStage(layers)
        takes = [tuple(range(teacher.n_skips))] if self.merge else [(k,) for k in self._kept(teacher)]
        return UpStage(layers, sampler, takes, teacher.n_skips)


def _check_handing_through(teacher: Stage) -> None:
    first, last = teacher.layers[0][0], teacher.layers[-1][0]
    assert isinstance(first, ResnetBlock2D)
    assert isinstance(last, ResnetBlock2D)
    out = last.conv2.out_channels
    came = first.in_channels - out if isinstance(teacher, UpStage) else first.in_channels
    if came != out:
        raise DoesNotFit(f"handing the hidden state through needs as many channels in as out, got {came} and {out}")


def _layer(text: str, residual: nn.Module | None, attention: nn.Module | None) -> Layer:
    match = _LAYER.fullmatch(text)
    assert match is not None
    return _residual_unit(match["residual"], residual), _attention_unit(match["attention"], attention)


def _residual_unit(text: str | None, source: nn.Module | None) -> nn.Module | None:
    if text is None:
        if isinstance(source, ResnetBlock2D) and source.in_channels != source.conv2.out_channels:
            raise DoesNotFit(f"a layer without residual unit needs as many channels in as out, got {source.in_channels} and {source.conv2.out_channels}")
        return None
    if not isinstance(source, ResnetBlock2D):
        raise DoesNotFit(f"unit '{text}' needs a ResnetBlock2D in the teacher's stage, got {type(source).__name__}")
    unit: nn.Module = _RESIDUAL[text[0]](source, int(text[1:] or 1))
    return unit


def _attention_unit(text: str | None, source: nn.Module | None) -> nn.Module | None:
    if text is None:
        return None
    if not isinstance(source, Transformer2DModel):
        raise DoesNotFit(f"unit '{text}' needs a transformer in the teacher's layer, which has none")
    if text == "A":
        same: nn.Module = copy.deepcopy(source)
        return same
    if text == "S":
        return units.SelfAttention2D(source)
    narrow: nn.Module = units.narrow_transformer(source, int(text[1:].removesuffix("f")), plain_mlp=text.endswith("f"))
    return narrow


def _separable_sampler(sampler: nn.Module) -> nn.Module:
    light = copy.deepcopy(sampler)
    light.conv = units.SeparableConv2d.of(light.conv)  # type: ignore[arg-type]
    return light


def _plain_sampler(sampler: nn.Module) -> nn.Module:
    if isinstance(sampler, Upsample2D):
        nearest: nn.Module = Upsample2D(sampler.channels)
        return nearest
    assert isinstance(sampler, Downsample2D)
    # diffusers' own pooling rounds odd sizes down, the teacher's padded convolution rounds up
    return nn.AvgPool2d(2, ceil_mode=sampler.padding == 1)


_SAMPLERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "keep": copy.deepcopy,
    "separable": _separable_sampler,
    "plain": _plain_sampler,
}
