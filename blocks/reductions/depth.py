"""Fewer layers, or none."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from torch import Tensor, nn

from nas.blocks.reductions.reduction import Reduction, check_fraction, copied, reduction
from nas.cut_stage import Chain
from nas.errors import DoesNotFit
from nas.layout import tensors_of


class HandOn(nn.Module):
    """Returns the first tensor it is called with."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The first tensor among positional, then keyword arguments."""
        return tensors_of((args, kwargs))[0]


@reduction
@dataclass(frozen=True)
class Bypass(Reduction):
    """No block at all."""

    def build(self, teacher: nn.Module) -> nn.Module:
        """A module that hands its first input on."""
        del teacher
        return HandOn()

    def check(self, reads: Sequence[Tensor], writes: Sequence[Tensor]) -> None:
        """Raises DoesNotFit unless the stage writes one tensor, shaped like the first it reads."""
        if len(writes) != 1 or reads[0].shape != writes[0].shape or reads[0].dtype != writes[0].dtype:
            shapes = ", ".join(str(tuple(value.shape)) for value in writes)
            raise DoesNotFit(f"{self.name} needs one output shaped like the first input {tuple(reads[0].shape)}, found {shapes}")


@reduction
@dataclass(frozen=True)
class FewerLayers(Reduction):
    """The first layers of every run of layers alike; at least one of each."""

    fraction: float = 0.5

    def __post_init__(self) -> None:
        check_fraction(self, self.fraction)

    def build(self, teacher: nn.Module) -> nn.Module:
        """The teacher's block with shorter runs."""
        twin, removed = copied(teacher), 0
        for module in list(twin.modules()):
            if isinstance(module, nn.Sequential | nn.ModuleList):
                kept = self._kept(list(module))
                removed += len(module) - len(kept)
                if isinstance(twin, Chain) and module is twin.parts:
                    twin = twin.keep(kept)
                else:
                    _keep(module, kept)
        if not removed:
            raise DoesNotFit(f"{self.name} needs at least two layers alike (class and weight shapes) in a row, found none in {type(teacher).__name__}")
        return twin

    def _kept(self, layers: list[nn.Module]) -> list[int]:
        kept: list[int] = []
        for _, run in groupby(range(len(layers)), key=lambda k: _form(layers[k])):
            numbers = list(run)
            alike = len(numbers) > 1 and any(True for _ in layers[numbers[0]].parameters())
            kept += numbers[: math.ceil(self.fraction * len(numbers))] if alike else numbers
        return kept


def _form(layer: nn.Module) -> tuple[str, tuple[tuple[int, ...], ...]]:
    return type(layer).__name__, tuple(tuple(p.shape) for p in layer.parameters())


def _keep(container: nn.Sequential | nn.ModuleList, numbers: list[int]) -> None:
    layers = list(container)
    for name in list(container._modules):
        del container._modules[name]
    for k, number in enumerate(numbers):
        container.add_module(str(k), layers[number])
