"""The contract of surrogate blocks: they write what the teacher's block writes, checked without weights or time."""

import copy
import json
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from nas.blocks.building import build_block
from nas.errors import ContractError, InputError
from nas.graph import StageGraph, Step, Values, call_step
from nas.space import Choice, Recipe, Stage
from nas.traced import is_measured_whole

Passed = dict[str, tuple[tuple[Any, ...], tuple[Any, ...]]]
"""Step name -> what it reads and what it writes."""

Module = TypeVar("Module", bound=nn.Module)


def check_block(step: Step, block: nn.Module, inputs: Sequence[Any], choice: str = "block") -> None:
    """Raises unless the block, called with what the step reads, writes what the step's own module writes: count, shapes, types.

    Everything runs on the meta device; the modules' weights are neither copied nor touched.

    Args:
        step: the teacher's step.
        block: what shall take its place.
        inputs: the values the step reads, on any device.
        choice: the block's name, for the message.

    Raises:
        ContractError: names stage, block, value, expected and got.
    """
    arguments = tuple(_on_meta(value) for value in inputs)
    check_written(step, choice, block, arguments, _call(step, step.module, arguments))


def check_recipes(graph: StageGraph, choices: Iterable[tuple[Stage, Choice]], inputs: Values) -> None:
    """`check_block` for the blocks that recipes make, built without weights, on the shapes that graph `inputs` lead to.

    Raises:
        DoesNotFit: a recipe cannot be applied to its stage.
    """
    passed = passed_on_meta(graph, inputs)
    for stage, choice in choices:
        if choice.recipe is None:
            raise InputError(f"choice '{stage.name}/{choice.name}' has no recipe to check")
        step = graph[stage.name]
        block = build_block(choice.recipe, without_weights(step.module), f"{step.name}/{choice.name}")
        check_written(step, choice.name, block, *passed[stage.name])


def check_spec(recipe: Recipe, where: str) -> None:
    """Raises unless the recipe's spec, of which the block's key is made, consists of JSON values.

    Args:
        recipe: of a block.
        where: the block's name, for the message.
    """
    try:
        json.dumps(recipe.spec)
    except (TypeError, ValueError) as error:
        raise ContractError(f"{where}: the spec must be JSON values: {error}") from error


def passed_on_meta(graph: StageGraph, inputs: Values) -> Passed:
    """What each step reads and writes, without values: traced without weights where the graph's steps say how, else taken from a real pass."""
    if is_measured_whole(graph):
        return {name: (tuple(map(_on_meta, read)), tuple(map(_on_meta, written))) for name, (read, written) in graph.passed(inputs).items()}
    passed: Passed = {}
    values = {name: _on_meta(value) for name, value in inputs.items()}
    for step in graph.steps:
        arguments = tuple(values[name] for name in step.reads)
        passed[step.name] = arguments, _call(step, step.module, arguments)
        values.update(zip(step.writes, passed[step.name][1], strict=True))
    return passed


def without_weights(module: Module) -> Module:
    """A copy of the module with every parameter and buffer on the meta device."""
    memo: dict[int, Any] = {id(buffer): buffer.to("meta") for buffer in module.buffers()}
    memo |= {id(parameter): nn.Parameter(parameter.to("meta"), parameter.requires_grad) for parameter in module.parameters()}
    return copy.deepcopy(module, memo)


def check_written(step: Step, choice: str, block: nn.Module, arguments: tuple[Any, ...], expected: tuple[Any, ...]) -> None:
    """Raises unless the block writes what is expected, on the meta device."""
    where = f"block '{step.name}/{choice}'"
    try:
        got = _call(step, block, arguments)
    except ContractError as error:
        raise ContractError(f"{where} must write {len(expected)} values {step.writes} like the teacher: {error}") from error
    except Exception as error:
        reads = ", ".join(f"'{name}' {_shape(value)}" for name, value in zip(step.reads, arguments, strict=True))
        raise ContractError(f"{where} cannot read {reads}: {next(iter(str(error).splitlines()), type(error).__name__)}") from error
    for name, one, other in zip(step.writes, expected, got, strict=True):
        if _shape(one) != _shape(other):
            raise ContractError(f"{where} must write '{name}' as {_shape(one)} like the teacher, wrote {_shape(other)}")
        if isinstance(one, Tensor) and one.dtype != other.dtype:
            raise ContractError(f"{where} must write '{name}' as {one.dtype} like the teacher, wrote {other.dtype}")


def _call(step: Step, module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    # not `without_weights`: calling the module itself with other tensors copies nothing
    tensors = {name: tensor.detach().to("meta") for name, tensor in (*module.named_parameters(), *module.named_buffers())}
    with torch.no_grad():
        return call_step(step, lambda *read, **more: functional_call(module, tensors, read, more), arguments)  # type: ignore[arg-type]  # called like a module


def _on_meta(value: Any) -> Any:
    return value.to("meta") if isinstance(value, Tensor) else value


def _shape(value: Any) -> Any:
    return tuple(value.shape) if isinstance(value, Tensor) else value
