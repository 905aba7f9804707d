"""The contract of recipes as a test suite that anyone can run on their own: `check_recipe(Narrow(16), teacher_block, example_input)`."""

import json
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from nas.blocks.building import build_block
from nas.blocks.contract import check_block, check_spec, without_weights
from nas.blocks.recipe import BlockRecipe, recipe_of
from nas.data import hash_tensors
from nas.errors import ContractError, DoesNotFit
from nas.graph import StageGraph, Step, Values, call_step
from nas.layout import Layout, Template, tensors_of
from nas.space import Recipe, Stage


def check_recipe(recipe: Recipe, teacher: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
    """The block that the recipe makes of a teacher's block, proven on one call of it with these arguments.

    Proven are: what is written (count, structure, shapes, types, device), on the meta device and with values; that equal seeds make equal
    blocks and equal inputs equal outputs; that the teacher is left alone and shares no parameter; that weights come back from a
    state_dict; that every parameter gets a finite gradient; that the spec is JSON and, for registered recipes, makes an equal recipe.

    Raises:
        DoesNotFit: the recipe says that it cannot be applied.
        ContractError: the first promise that is broken.
    """
    return check_at_step(recipe, _step_of(teacher, args, kwargs), tensors_of((args, kwargs)))


def check_library(graph: StageGraph, stages: Iterable[Stage], inputs: Values) -> int:
    """Runs the suite on every choice of every stage, on what the stage reads in one pass of the teacher; returns how many were proven."""
    passed, count = graph.passed(inputs), 0
    for stage in stages:
        for choice in stage.choices:
            if choice.recipe is not None:
                check_at_step(choice.recipe, graph[stage.name], passed[stage.name][0])
                count += 1
    return count


def check_at_step(recipe: Recipe, step: Step, read: Iterable[Any]) -> nn.Module:
    """See `check_recipe`; for the module of a step and the values it reads."""
    arguments, name = tuple(read), str(getattr(recipe, "name", type(recipe).__name__))
    where = f"block '{step.name}/{name}'"
    check_spec(recipe, where)
    _check_rebuilt(recipe, where)
    _check_fits(recipe, step, arguments, name)
    before = hash_tensors(_tensors(step.module))
    block, twin = (_seeded(recipe, step.module) for _ in range(2))
    if hash_tensors(_tensors(step.module)) != before:
        raise ContractError(f"{where}: build must leave the teacher alone, it changed the teacher's weights")
    _check_tensors(block, step.module, where)
    check_block(step, block, arguments, name)
    outputs = _outputs(step, block, arguments)
    for first, second, what in (
        (outputs, _outputs(step, block, arguments), "equal inputs must give equal outputs"),
        (outputs, _outputs(step, twin, arguments), "equal seeds must make equal blocks (use torch's global generator only)"),
        (outputs, _outputs(step, _reloaded(recipe, step.module, block, where), arguments), "a state_dict must bring the block back"),
    ):
        if not all(torch.equal(one, other) for one, other in zip(first, second, strict=True)):
            raise ContractError(f"{where}: {what}")
    _check_gradients(step, block, arguments, where)
    return block


def _check_fits(recipe: Recipe, step: Step, arguments: tuple[Any, ...], name: str) -> None:
    """`check_block` of the block without weights; an optional recipe that breaks the contract does not fit, as in a library."""
    try:
        check_block(step, build_block(recipe, without_weights(step.module), f"{step.name}/{name}"), arguments, name)
    except ContractError as error:
        if getattr(recipe, "optional", False):
            raise DoesNotFit(f"{name} does not fit: {error}") from error
        raise


def _step_of(teacher: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Step:
    with torch.no_grad():
        result = teacher(*args, **kwargs)
    call, written = Template.of_result((args, kwargs)), Template.of_result(result)
    names = tuple(f"in{k}" for k in range(call.n_slots)), tuple(f"out{k}" for k in range(written.n_slots))
    return Step(type(teacher).__name__, *names, teacher, Layout(call, written))


def _check_rebuilt(recipe: Recipe, where: str) -> None:
    """Raises unless the spec of a registered recipe makes an equal one."""
    text = json.dumps(recipe.spec, sort_keys=True)
    if isinstance(recipe, BlockRecipe) and recipe.recipe and json.dumps(recipe_of(json.loads(text)).spec, sort_keys=True) != text:
        raise ContractError(f"{where}: the recipe that its spec makes has another spec; let the spec hold every field")


def _seeded(recipe: Recipe, teacher: nn.Module) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return recipe.build(teacher).eval()


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _check_tensors(block: nn.Module, teacher: nn.Module, where: str) -> None:
    own = {id(parameter) for parameter in teacher.parameters()}
    form = next(((p.device, p.dtype) for p in teacher.parameters()), None)
    for name, parameter in block.named_parameters():
        if id(parameter) in own:
            raise ContractError(f"{where} shares parameter '{name}' with the teacher, whose weights calibration would change; copy it")
        if form is not None and (parameter.device, parameter.dtype) != form:
            raise ContractError(f"{where}: parameter '{name}' must be {form[1]} on {form[0]} like the teacher's, is {parameter.dtype} on {parameter.device}")


def _outputs(step: Step, block: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    with torch.no_grad():
        return call_step(step, block, arguments)


def _reloaded(recipe: Recipe, teacher: nn.Module, block: nn.Module, where: str) -> nn.Module:
    again = _seeded(recipe, teacher)
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.zero_()
    try:
        again.load_state_dict(block.state_dict())
    except RuntimeError as error:
        raise ContractError(f"{where}: a state_dict must bring the block back: {str(error).splitlines()[-1].strip()}") from error
    return again


def _check_gradients(step: Step, block: nn.Module, arguments: tuple[Any, ...], where: str) -> None:
    block.requires_grad_(True)
    parameters = dict(block.named_parameters())
    if not parameters:
        return
    loss = sum((value.float().square().sum() for value in call_step(step, block, arguments)), torch.zeros((), requires_grad=True))
    gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    for name, gradient in zip(parameters, gradients, strict=True):
        if gradient is None or not torch.isfinite(gradient).all():
            raise ContractError(f"{where}: parameter '{name}' must get a finite gradient from the outputs, got {'none' if gradient is None else 'another'}")
