"""What the generic reductions share: names from the catalogue, copies of a teacher's block, and replacing its layers."""

import copy
from collections.abc import Callable
from typing import ClassVar, TypeVar

import torch
from torch import nn

from nas.arguments import number
from nas.blocks.catalogue import CATALOGUE
from nas.blocks.recipe import BlockRecipe
from nas.errors import DoesNotFit, InputError

R = TypeVar("R", bound="type[Reduction]")


class Reduction(BlockRecipe):
    """A recipe of the toolkit; a library leaves it out where it does not fit."""

    optional: ClassVar[bool] = True


def reduction(kind: R) -> R:
    """Gives a class the name and the words that the catalogue has for it."""
    entry = next(entry for entry in CATALOGUE if entry.target == f"{kind.__module__}:{kind.__name__}")
    kind.recipe, kind.does, kind.fits = entry.name, entry.does, entry.fits
    return kind


def check_fraction(recipe: Reduction, fraction: float) -> None:
    """Raises unless the fraction lies between 0 and 1."""
    if not 0 < number(f"{recipe.recipe}: the fraction to keep", fraction) < 1:
        raise InputError(f"{recipe.recipe}: the fraction to keep must lie between 0 and 1, got {fraction}")


def copied(teacher: nn.Module) -> nn.Module:
    """A trainable copy of the teacher's block; transformers' Conv1D, a linear layer with its weight transposed, becomes one of torch's."""
    twin = _linear(copy.deepcopy(teacher)).requires_grad_(True)
    for name, module in list(twin.named_modules()):
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0  # its fused path would ask replaced layers for weights they lack
        if _linear(module) is not module:
            put(twin, name, _linear(module).requires_grad_(True))
    return twin


def _linear(module: nn.Module) -> nn.Module:
    """The linear layer that a Conv1D of transformers is; any other module itself."""
    if (type(module).__module__, type(module).__name__) != ("transformers.pytorch_utils", "Conv1D"):
        return module
    weight, bias = module.weight, module.bias
    assert isinstance(weight, torch.Tensor)
    assert isinstance(bias, torch.Tensor)
    layer = nn.Linear(weight.shape[0], weight.shape[1], device=weight.device, dtype=weight.dtype)
    layer.weight, layer.bias = nn.Parameter(weight.detach().T.clone()), nn.Parameter(bias.detach().clone())
    return layer


def replaced(recipe: Reduction, teacher: nn.Module, make: Callable[[nn.Module], nn.Module | None], needs: str) -> nn.Module:
    """A copy of the teacher's block with every layer replaced for which `make` has a smaller one.

    Raises:
        DoesNotFit: it has none for any layer.
    """
    twin = copied(teacher)
    found: list[str] = []
    closed = {id(part) for module in twin.modules() if isinstance(module, nn.MultiheadAttention) for part in module.children()}
    for name, module in list(twin.named_modules()):
        smaller = None if id(module) in closed else make(module)
        if smaller is None:
            continue
        found.append(name)
        if not name:
            return smaller
        put(twin, name, smaller)
    if not found:
        kinds = sorted({type(module).__name__ for module in teacher.modules() if not list(module.children())})
        raise DoesNotFit(f"{recipe.name} needs {needs}, found {', '.join(kinds) or 'nothing'}")
    return twin


def put(root: nn.Module, name: str, module: nn.Module) -> None:
    """Replaces the submodule of that name."""
    parent, _, leaf = name.rpartition(".")
    root.get_submodule(parent)._modules[leaf] = module


def size(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def set_weight(layer: nn.Linear | nn.modules.conv._ConvNd, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
    """Copies values into a layer; without weights, on the meta device, nothing."""
    with torch.no_grad():
        layer.weight.copy_(weight.reshape(layer.weight.shape))
        if layer.bias is not None and bias is not None:
            layer.bias.copy_(bias)
