"""A recipe's `build` under watch: what it raises is told with recipe and place, and the teacher is as it was afterwards."""

from typing import Any

from torch import nn

from nas.errors import ContractError
from nas.space import Recipe
from nas.user_code import user_code

_WAY_OUT = "where the recipe does not fit, build must raise nas.errors.DoesNotFit"


def build_block(recipe: Recipe, teacher: nn.Module, where: str) -> nn.Module:
    """The block that the recipe makes; `where` is its name, `stage/choice`.

    Raises:
        DoesNotFit: the recipe cannot be applied to this block.
        ContractError: it returns no module, changes the teacher's block, or shares weights with it, which calibration would change.
        UserCodeError: it raises anything else.
    """
    before = _state(teacher)
    with user_code(f"block '{where}': {type(recipe).__name__}.build", _WAY_OUT):
        block = recipe.build(teacher)
    if not isinstance(block, nn.Module):
        raise ContractError(f"block '{where}': {type(recipe).__name__}.build must return an nn.Module, got {type(block).__name__}")
    after = _state(teacher)
    changed = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    if changed:
        raise ContractError(
            f"block '{where}': {type(recipe).__name__}.build must leave the teacher alone, it changed '{changed[0] or type(teacher).__name__}' of it; "
            "work on copy.deepcopy(teacher)"
        )
    own = {id(parameter) for parameter in teacher.parameters()}
    shared = [name for name, parameter in block.named_parameters() if id(parameter) in own]
    if shared:
        raise ContractError(f"block '{where}' shares parameter '{shared[0]}' with the teacher, whose weights calibration would change; copy it")
    return block


def _state(module: nn.Module) -> dict[str, Any]:
    """Name -> which module or tensor it is, and how often it was written."""
    parts: dict[str, Any] = {name: (id(part), part.training) for name, part in module.named_modules()}
    return parts | {f"{name}": (id(value), value._version) for name, value in (*module.named_parameters(), *module.named_buffers())}
