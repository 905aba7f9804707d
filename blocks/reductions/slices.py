"""Blocks that start from a part of the teacher's weights."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from nas.blocks.reductions.reduction import Reduction, reduction
from nas.errors import DoesNotFit


@reduction
@dataclass(frozen=True)
class TeacherSlice(Reduction):
    """The block's own class built with other arguments: `TeacherSlice({"inner": 16})`.

    What is not given is read from the teacher's attributes of that name.
    """

    sizes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The sizes, such as `inner=16`."""
        return ",".join(f"{name}={value}" for name, value in self.sizes.items())

    def build(self, teacher: nn.Module) -> nn.Module:
        """A smaller block, started from the leading parts of the teacher's weights."""
        kind = type(teacher)
        arguments = {}
        for name, parameter in inspect.signature(kind).parameters.items():
            if name in self.sizes:
                arguments[name] = self.sizes[name]
            elif hasattr(teacher, name):
                arguments[name] = getattr(teacher, name)
            elif parameter.default is parameter.empty:
                raise DoesNotFit(f"teacher_slice needs '{name}' to build a {kind.__name__}, found it neither in sizes nor as an attribute")
        unknown = set(self.sizes) - set(inspect.signature(kind).parameters)
        if unknown or not self.sizes:
            raise DoesNotFit(f"teacher_slice needs sizes that {kind.__name__} takes, found {', '.join(sorted(unknown)) or 'none'}")
        weight = next(teacher.parameters(), torch.empty(0))
        with torch.device(weight.device):
            block = kind(**arguments).to(weight.dtype)
        return copy_slices(teacher, block)


def copy_slices(teacher: nn.Module, block: nn.Module) -> nn.Module:
    """Copies into each tensor of the block the leading part of the teacher's tensor of the same name; returns the block."""
    source = teacher.state_dict()
    with torch.no_grad():
        for name, value in block.state_dict().items():
            if name in source and source[name].ndim == value.ndim and not value.is_meta:
                common = tuple(slice(0, min(one, other)) for one, other in zip(value.shape, source[name].shape, strict=True))
                value[common].copy_(source[name][common])
    return block
