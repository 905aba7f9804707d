"""How a module of any signature is called with plain tensors: positional and keyword arguments, tuples, lists, dicts, None, and results alike."""

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree  # what torch.export and transformers stand on; knows their output classes

from nas.errors import ContractError, DamagedFile, InputError
from nas.files import check_form, parse_json

_PLAIN = (type(None), bool, int, float, str, torch.dtype, torch.device, torch.memory_format)


@dataclass(frozen=True, slots=True)
class Slot:
    """The place of the tensor with that number in a template; `dim` is the dimension that counts its samples there."""

    index: int
    dim: int = 0


@dataclass(frozen=True)
class Template:
    """Nested containers whose leaves are slots for tensors, or constants.

    Outside of it tensors have their samples first; inside, where the module wants them (the states of an LSTM: second).
    """

    spec: pytree.TreeSpec
    leaves: tuple[Any, ...]

    @classmethod
    def of(cls, tree: Any, slot: Callable[[Tensor], Slot | None]) -> "Template":
        """The template of `tree`; `slot` gives the tensors that vary their places, None keeps one as a constant."""
        leaves, spec = pytree.tree_flatten(tree)
        made = [(slot(leaf) or leaf.detach()) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        return cls(spec, tuple(made))

    @classmethod
    def of_result(cls, tree: Any) -> "Template":
        """A template with a slot for every tensor, in order."""
        slots = map(Slot, range(len(pytree.tree_leaves(tree))))
        return cls.of(tree, lambda _: next(slots))

    @property
    def n_slots(self) -> int:
        """How many tensors it takes."""
        return 1 + max((leaf.index for leaf in self.leaves if isinstance(leaf, Slot)), default=-1)

    @property
    def is_one_argument(self) -> bool:
        """Of a template of `(args, kwargs)`: whether that is one tensor, given by position, and nothing else."""
        return self.n_slots == 1 and self.spec == pytree.tree_structure(((0,), {}))

    @property
    def slots(self) -> list[Slot]:
        """The places of its tensors, in the order of their numbers."""
        return sorted({leaf.index: leaf for leaf in self.leaves if isinstance(leaf, Slot)}.values(), key=lambda slot: slot.index)

    def fill(self, tensors: Sequence[Tensor]) -> Any:
        """The containers with these tensors in their slots, constant tensors on the same device."""
        dims = {slot.index: slot.dim for slot in self.slots}
        return self.contain([tensor.movedim(0, dims.get(index, 0)) for index, tensor in enumerate(tensors)])

    def contain(self, tensors: Sequence[Tensor]) -> Any:
        """The same with tensors that have their samples where the module wants them."""
        device = tensors[0].device if tensors else None

        def value(leaf: Any) -> Any:
            if isinstance(leaf, Slot):
                return tensors[leaf.index]
            return leaf.to(device) if isinstance(leaf, Tensor) and device is not None else leaf

        return pytree.tree_unflatten([value(leaf) for leaf in self.leaves], self.spec)

    def take(self, tree: Any) -> tuple[Tensor, ...]:
        """The tensors of `tree` by slot; the bare tensors (one, or a tuple) do as well as the containers around them.

        Raises:
            ContractError: the structure is another; says which.
        """
        leaves, spec = pytree.tree_flatten(tree)
        if spec == self.spec and all(isinstance(leaf, Tensor) == isinstance(own, Slot | Tensor) for leaf, own in zip(leaves, self.leaves, strict=True)):
            found = {own.index: leaf.movedim(own.dim, 0) for leaf, own in zip(leaves, self.leaves, strict=True) if isinstance(own, Slot)}
            return tuple(found[index] for index in range(self.n_slots))
        bare = tree if isinstance(tree, tuple | list) else (tree,)
        if len(bare) == self.n_slots and all(isinstance(value, Tensor) for value in bare):
            return tuple(value.movedim(slot.dim, 0) for value, slot in zip(bare, self.slots, strict=True))
        raise ContractError(f"must return {self} like the teacher, returned {Template.of_result(tree)}")

    def __str__(self) -> str:
        """The structure for people: `(Tensor, None)`."""
        marks = ["Tensor" if isinstance(leaf, Slot | Tensor) else type(leaf).__name__.replace("NoneType", "None") for leaf in self.leaves]
        return str(pytree.tree_unflatten([_Word(mark) for mark in marks], self.spec))

    def __deepcopy__(self, memo: dict[int, Any]) -> "Template":
        """Itself: it never changes."""
        return self

    def to_json(self) -> dict[str, Any]:
        """JSON values that `from_json` reads back.

        Raises:
            InputError: a constant is no JSON value.
        """
        leaves = [{"slot": leaf.index, **({"dim": leaf.dim} if leaf.dim else {})} if isinstance(leaf, Slot) else {"constant": leaf} for leaf in self.leaves]
        try:
            json.dumps(leaves)
            return {"spec": pytree.treespec_dumps(self.spec), "leaves": leaves}
        except (TypeError, NotImplementedError, ValueError) as error:
            raise InputError(f"a result {self} cannot be written to a file: {error}; cut a module that returns tensors") from error

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Template":
        """The template that wrote this.

        Raises:
            DamagedFile: it has another form, or would have torch import what the file names.
        """
        check_form(content, {"spec": str, "leaves": [dict]}, "a result")
        _check_structure(content["spec"])
        try:
            leaves = tuple(Slot(leaf["slot"], leaf.get("dim", 0)) if "slot" in leaf else leaf["constant"] for leaf in content["leaves"])
            return cls(pytree.treespec_loads(content["spec"]), leaves)
        except (KeyError, ValueError, TypeError, IndexError, AttributeError, AssertionError, NotImplementedError, RecursionError) as error:
            raise DamagedFile(f"a result cannot be rebuilt: {type(error).__name__}: {error}") from error


def _check_structure(text: str) -> None:
    """Raises if torch would import a module to rebuild this structure: it does for default dictionaries and enumerations."""
    left = [parse_json(text, "the structure of a result")]
    while left:
        node = left.pop()
        if isinstance(node, list):
            left += node
        elif isinstance(node, dict):
            if node.get("type") == "collections.defaultdict" or "__enum__" in node:
                raise DamagedFile("the structure of a result names code to import; only plain containers and outputs of known classes are read")
            left += node.values()
        elif isinstance(node, str):  # a context is JSON in JSON
            with suppress(DamagedFile):
                left.append(parse_json(node, "a context"))


class _Word(str):
    __slots__ = ()

    __repr__ = str.__str__


@dataclass(frozen=True)
class Layout:
    """How a step's module is called with the values it reads, and what of its result it writes.

    `arguments` is a template of `(args, kwargs)`; tensors without a sample dimension (position tables, masks) are constants in it.
    """

    arguments: Template
    result: Template

    def call(self, module: Callable[..., Any], read: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """What the module writes for the tensors read."""
        args, kwargs = self.arguments.fill(read)
        return self.result.take(module(*args, **kwargs))


def tensors_of(tree: Any) -> list[Tensor]:
    """All tensors inside nested containers, in order."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def check_leaves(tree: Any, where: str) -> None:
    """Raises unless all that is no tensor is a plain constant, which may be kept."""
    for leaf in pytree.tree_leaves(tree):
        if not isinstance(leaf, (Tensor, *_PLAIN)):
            raise InputError(f"{where} passes a {type(leaf).__name__}, which is neither a tensor nor a plain constant; switch it off (such as use_cache=False)")


class Restored(nn.Module):
    """A block in a teacher's place: returns its tensors in the teacher's containers, and shows the plain attributes that callers may ask for.

    `one_argument`: it is known to be called with one tensor, by position, and nothing else.
    """

    def __init__(self, block: nn.Module, result: Template, attributes: dict[str, Any] | None = None, *, one_argument: bool = False) -> None:
        super().__init__()
        self.block = block
        self.shown, self.one_argument = attributes or {}, one_argument
        self._result = result
        for name, value in self.shown.items():
            self.__dict__.setdefault(name, value)

    @property
    def returns_bare_tensor(self) -> bool:
        """Whether the teacher returns one tensor with nothing around it."""
        return self._result.spec.is_leaf()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The teacher's structure with the block's tensors."""
        return self._result.contain(tensors_of(self.block(*args, **kwargs)))


class PassOn(nn.Module):
    """The place of a later module of a stage: hands its first tensor on, in the containers the teacher's module returned."""

    def __init__(self, result: Template) -> None:
        super().__init__()
        self._result = result

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The first tensor among the arguments."""
        return self._result.contain([tensors_of((args, kwargs))[0]])


def plain_attributes(module: nn.Module) -> dict[str, Any]:
    """Numbers, texts and flags that a module carries, which the code around it may ask for."""
    return {name: value for name, value in vars(module).items() if not name.startswith("_") and name != "training" and isinstance(value, _PLAIN)}
