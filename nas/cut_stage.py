"""A stage of a cut model: how its modules are called, a chain of several of them as one block, and how a block takes their place."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from nas.errors import InputError
from nas.graph import Step
from nas.layout import PassOn, Restored, Slot, Template, plain_attributes, tensors_of


@dataclass(frozen=True)
class StageCall:
    """How a stage was called in one pass: the arguments of its first module, `(args, kwargs)`, and what each of its modules returned."""

    name: str
    paths: tuple[str, ...]
    calls: Mapping[str, tuple[Any, Any]]
    results: Mapping[str, Any]

    @property
    def arguments(self) -> tuple[Any, Any]:
        """What the stage's first module was called with."""
        return self.calls[self.paths[0]]

    @property
    def result(self) -> Any:
        """What the stage's last module returned."""
        return self.results[self.paths[-1]]


class Chain(nn.Module):
    """Several modules of a model as one block: called like the first of them, returns what the last one returns.

    Args:
        parts: the modules.
        calls: for each, the template of its call: slot 0 is the tensor before it, the others are the tensors the chain was called with.
        results: for each, the template of what it returned in the model.
    """

    def __init__(self, parts: Sequence[nn.Module], calls: Sequence[Template], results: Sequence[Template]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.calls, self.results = tuple(calls), tuple(results)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The last module's result."""
        given = tensors_of((args, kwargs))
        result: Any = given[0]
        for part, call in zip(self.parts, self.calls, strict=True):
            args, kwargs = call.contain([tensors_of(result)[0], *given])
            result = part(*args, **kwargs)
        return result

    def keep(self, numbers: Sequence[int]) -> "Chain":
        """A chain of some of the parts, which are shared."""
        return Chain([self.parts[k] for k in numbers], [self.calls[k] for k in numbers], [self.results[k] for k in numbers])


def chain_of(model: nn.Module, called: StageCall) -> Chain:
    """The stage's modules as a chain.

    Raises:
        InputError: a module reads something else than the tensor before it and what the first one reads.
    """
    given = tensors_of(called.arguments)
    calls = []
    for k, path in enumerate(called.paths):
        handed = given[:1] if k == 0 else tensors_of(called.results[called.paths[k - 1]])
        read = tensors_of(called.calls[path])
        if len(handed) != 1 or not any(value is handed[0] for value in read):
            raise InputError(
                f"stage '{called.name}': '{path}' must read the one tensor that '{called.paths[k - 1]}' writes, but something lies between them; "
                "make one stage of each"
            )
        number = {id(value): slot for slot, value in reversed(list(enumerate([handed[0], *given])))}
        if any(id(value) not in number and value.shape[:1] == handed[0].shape[:1] for value in read):
            raise InputError(f"stage '{called.name}': '{path}' reads a tensor that '{called.paths[0]}' does not; make one stage of each")
        calls.append(_numbered(called.calls[path], number))
    results = [Template.of_result(called.results[path]) for path in called.paths]
    if any(result.n_slots != 1 for result in results[:-1]):
        raise InputError(f"stage '{called.name}': each of its modules must return one tensor; make one stage of each")
    return Chain([model.get_submodule(path) for path in called.paths], calls, results)


def _numbered(call: Any, number: Mapping[int, int]) -> Template:
    return Template.of(call, lambda tensor: Slot(number[id(tensor)]) if id(tensor) in number else None)


def place(model: nn.Module, paths: Sequence[str], block: nn.Module, step: Step) -> dict[str, nn.Module]:
    """Qualified name -> what to put there so that the block stands for the stage: itself at the first place, hand-on modules at the others."""
    assert step.layout is not None
    teacher = model.get_submodule(paths[0])
    if len(paths) == 1:
        return {paths[0]: Restored(block, step.layout.result, plain_attributes(teacher))}
    assert isinstance(step.module, Chain)
    results = step.module.results
    first = Restored(block, results[0], plain_attributes(teacher))
    return {paths[0]: first, **{path: PassOn(result) for path, result in zip(paths[1:], results[1:], strict=True)}}


def check_group(stage: str, name: str, module: nn.Module) -> None:
    """Raises for a container that the model indexes rather than calls."""
    if isinstance(module, nn.ModuleList | nn.ModuleDict):
        inside = ", ".join(f"{name}.{key}" for key in list(dict(module.named_children()))[:3])
        raise InputError(f"stage '{stage}': '{name}' is a {type(module).__name__}, which is never called; name what is in it: {inside}, ...")
