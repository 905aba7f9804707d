"""Any model cut into stages by the names of its modules: features by hooks, whole forward passes, no tracing and no reuse.

`cut(model, {"low": "blocks.0", "high": ["blocks.1", "blocks.2"]}, samples)` makes two stages, the second of two modules.

What every stage reads and writes is found by running the model on two and on three samples: tensors of which one dimension follows
are values of the graph, the others are constants.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from nas import arguments
from nas.cut_stage import StageCall, chain_of, check_group, place
from nas.data import Samples
from nas.errors import InputError, did_you_mean
from nas.graph import Observer, StageGraph, Step, Values, call_step
from nas.layout import Layout, Slot, Template, check_leaves, tensors_of
from nas.model_call import ModelCall
from nas.user_code import user_code

Stages = Mapping[str, str | Sequence[str]] | Sequence[str]
"""Stage name -> qualified name of its module, or of several that run one after the other; or just qualified names."""


@dataclass(frozen=True)
class CutModel(StageGraph):
    """A model with stages at some of its modules; runs as a whole, so nothing is known of the data flow between stages.

    Its steps are the stages in the order they are called, and one step for all the rest. Made by `cut`.
    """

    model: nn.Module
    call: ModelCall
    paths: Mapping[str, tuple[str, ...]]

    def __post_init__(self) -> None:
        """Nothing to check: the names a stage reads are its own."""

    def run(self, inputs: Values, blocks: Mapping[str, nn.Module] | None = None, observe: Observer | None = None) -> Tensor:
        """The model's output, with other blocks at the stages that `blocks` names."""
        chosen = {name: block for name, block in (blocks or {}).items() if block is not self[name].module}
        with self.installed(chosen):
            if observe is None:
                return self.call(self.model, inputs)
            with self._watched(observe):
                return self.call(self.model, inputs)

    def passed(self, inputs: Values) -> dict[str, tuple[tuple[Any, ...], tuple[Any, ...]]]:
        """Step name -> what it reads and writes in a forward pass of the teacher; the rest reads the inputs and writes the output."""
        found: dict[str, tuple[tuple[Any, ...], tuple[Any, ...]]] = {}
        with torch.no_grad():
            output = self.run(inputs, observe=lambda step, arguments, written: found.update({step.name: (arguments, written)}))
        return {**found, self.steps[-1].name: (tuple(inputs[name] for name in self.inputs), (output,))}

    @contextmanager
    def installed(self, blocks: Mapping[str, nn.Module]) -> Iterator[None]:
        """The blocks in the teacher's places, which get their own modules back."""
        before: list[tuple[str, nn.Module]] = []
        try:
            for name, block in blocks.items():
                for path, module in place(self.model, self.paths[name], block, self[name]).items():
                    before.append((path, self.model.get_submodule(path)))
                    put(self.model, path, module)
            yield
        finally:
            for path, module in reversed(before):
                put(self.model, path, module)

    @contextmanager
    def _watched(self, observe: Observer) -> Iterator[None]:
        """Calls `observe` after each stage, by hooks on its first and last module."""
        handles: list[RemovableHandle] = []
        read: dict[str, Any] = {}

        def before(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
                del module
                read[name] = args, kwargs

            return hook

        def after(step: Step) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
                del module, args, kwargs
                assert step.layout is not None
                observe(step, step.layout.arguments.take(read.pop(step.name)), step.layout.result.take(output))

            return hook

        try:
            for name, paths in self.paths.items():
                handles.append(self.model.get_submodule(paths[0]).register_forward_pre_hook(before(name), with_kwargs=True))
                handles.append(self.model.get_submodule(paths[-1]).register_forward_hook(after(self[name]), with_kwargs=True))
            yield
        finally:
            for handle in handles:
                handle.remove()

    @cached_property
    def sources(self) -> tuple[tuple[int, ...], ...]:
        """Nothing is known of who wrote what a stage reads."""
        return tuple((-1,) * len(step.reads) for step in self.steps)

    @cached_property
    def ancestors(self) -> dict[str, frozenset[str]]:
        """Each step may depend on all that are called before it."""
        names = [step.name for step in self.steps]
        return {name: frozenset(names[: k + 1]) for k, name in enumerate(names)}


class Rest(nn.Module):
    """All of a model but its stages: runs with each of them answering what the teacher's block wrote on the example."""

    def __init__(self, model: nn.Module, call: ModelCall, names: Sequence[str], stages: Mapping[str, StageCall], steps: Sequence[Step]) -> None:
        super().__init__()
        self._adopt(model, "", {id(model.get_submodule(path)) for stage in stages.values() for path in stage.paths})
        self._structure = repr(model)
        self._run = _WithoutStages(model, call, tuple(names), stages, {stages[s.name].paths[-1]: s.layout.result.slots for s in steps if s.layout})

    def _adopt(self, parent: nn.Module, prefix: str, stages: set[int]) -> None:
        """Takes over every module with no stage inside, and what else the containers of stages hold themselves."""
        for name, parameter in parent.named_parameters(recurse=False):
            self.register_parameter(f"{prefix}{name}", parameter)
        for name, buffer in parent.named_buffers(recurse=False):
            self.register_buffer(f"{prefix}{name}", buffer)
        for name, child in parent.named_children():
            if id(child) in stages:
                continue
            if stages.isdisjoint(map(id, child.modules())):
                self.add_module(f"{prefix}{name}", child)
            else:
                self._adopt(child, f"{prefix}{name}__", stages)

    def forward(self, *inputs: Tensor) -> Tensor:
        """The model's output."""
        return self._run(*inputs)

    def extra_repr(self) -> str:
        """The whole model, as it prints itself: part of the teacher's key."""
        return self._structure


@dataclass(frozen=True)
class _WithoutStages:
    model: nn.Module
    call: ModelCall
    names: tuple[str, ...]
    stages: Mapping[str, StageCall]
    slots: Mapping[str, Sequence[Slot]]

    def __call__(self, *inputs: Tensor) -> Tensor:
        n = len(inputs[0])
        before: list[tuple[str, nn.Module]] = []
        try:
            for stage in self.stages.values():
                for path in stage.paths:
                    before.append((path, self.model.get_submodule(path)))
                    put(self.model, path, _Answer(path, before[-1][1], stage.results[path], self.slots.get(path, ()), n))
            return self.call(self.model, dict(zip(self.names, inputs, strict=True)))
        finally:
            for path, module in reversed(before):
                put(self.model, path, module)


class _Answer(nn.Module):
    """Returns what a module returned on the example, for `n` samples.

    Raises:
        InputError: the model reads something of the module itself, which no surrogate block would have.
    """

    def __init__(self, path: str, module: nn.Module, result: Any, slots: Sequence[Slot], n: int) -> None:
        super().__init__()
        self._path = path
        self._public = frozenset(name for name in (*module._modules, *module._parameters, *module._buffers, *vars(module)) if not name.startswith("_"))
        self._template = Template.of_result(result)
        dims = [slot.dim for slot in slots]
        self._tensors = [_repeated(value, dim, n) for value, dim in zip_longest(tensors_of(result), dims, fillvalue=0) if isinstance(value, Tensor)]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        del args, kwargs
        return self._template.contain(self._tensors)

    def __getattr__(self, name: str) -> Any:
        if name in self.__dict__.get("_public", ()):
            raise InputError(f"module '{self._path}' cannot be a stage: the model itself reads its '{name}'; leave it out, or name modules inside it")
        return super().__getattr__(name)


def cut(model: nn.Module, stages: Stages, samples: Samples, call: ModelCall | None = None) -> CutModel:
    """The model cut at the named modules.

    Args:
        model: in evaluation mode, on the samples' device.
        stages: see `Stages`; a stage of several modules must be a chain, each handing one tensor to the next.
        samples: at least three, to find out what travels between modules.
        call: how the model is called and which of its outputs counts.

    Raises:
        InputError: a name that is not in the model, a module in two stages, a module that is not called exactly once a pass, a
            model in training mode, on another device, or one whose output or buffers change from pass to pass.
        UserCodeError: what the model raises on the samples.
    """
    call = call or ModelCall()
    paths = _paths(stages)
    _check_names(model, paths)
    _check_ready(model, samples)
    with user_code("running the model on its samples", "look at the names, order and shapes of its inputs"):
        two, three = (_probe(model, call, paths, samples.rows(slice(0, n))) for n in (2, 3))
    steps = [_step(model, stage, three[name]) for name, stage in two.items()]
    names = tuple(samples.inputs)
    with torch.no_grad():
        example = _probe(model, call, paths, samples.rows(slice(0, 1)))
    rest = Step("(rest)", names, ("output",), Rest(model, call, names, example, steps))
    return CutModel(names, (*steps, rest), "output", model, call, {name: paths[name] for name in two})


def _paths(stages: object) -> dict[str, tuple[str, ...]]:
    """Stage name -> qualified names of its modules."""
    such_as = "{'low': 'layers.0'}, as the model's named_modules() spells them"
    wanted = stages if isinstance(stages, Mapping) else {name: name for name in arguments.texts("stages", stages, "layers.0")}
    if not all(isinstance(name, str) for name in wanted):
        raise InputError(f"stages must be names and modules such as {such_as}, got {arguments.shown(stages)}")
    return {name: arguments.texts(f"the modules of stage '{name}'", path, "layers.0") for name, path in wanted.items()}


def _repeated(value: Tensor, dim: int, n: int) -> Tensor:
    """The first sample's part of a value, for `n` samples."""
    first = value.movedim(dim, 0)[:1] if value.ndim else value
    return first.expand(n, *first.shape[1:]).movedim(0, dim) if value.ndim else value


def put(model: nn.Module, path: str, module: nn.Module) -> None:
    """Replaces the submodule with that qualified name."""
    parent, _, leaf = path.rpartition(".")
    model.get_submodule(parent)._modules[leaf] = module


def _check_names(model: nn.Module, paths: Mapping[str, tuple[str, ...]]) -> None:
    modules = dict(model.named_modules(remove_duplicate=False))
    owner: dict[int, str] = {}
    for stage, names in paths.items():
        if not names:
            raise InputError(f"stage '{stage}' names no module; give at least one")
        for name in names:
            if not name or name not in modules:
                raise InputError(f"stage '{stage}': the model has no module '{name}'{did_you_mean(name, [m for m in modules if m])}")
            check_group(stage, name, modules[name])
        for part in {id(inner): inner for name in names for inner in modules[name].modules()}.values():
            if owner.setdefault(id(part), stage) != stage:
                label = next(name for name, module in modules.items() if module is part)
                raise InputError(f"module '{label}' belongs to stages '{owner[id(part)]}' and '{stage}'; a module may belong to one stage")


def _check_ready(model: nn.Module, samples: Samples) -> None:
    training = [name or "the model itself" for name, module in model.named_modules() if module.training]
    if training:
        raise InputError(f"the model must be in evaluation mode, '{training[0]}' and {len(training) - 1} more are in training mode; call model.eval() first")
    if len(samples) < 3:
        raise InputError(f"cutting a model needs at least 3 samples to run it on, got {len(samples)}")
    device = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), None)
    for name, value in samples.inputs.items():
        if device is not None and value.device != device:
            raise InputError(f"the model is on {device}, samples '{name}' on {value.device}; move one of them with .to(...)")


def _probe(model: nn.Module, call: ModelCall, paths: Mapping[str, tuple[str, ...]], samples: Samples) -> dict[str, StageCall]:
    """What each stage is called with and returns in one pass, in the order of the calls."""
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    calls: dict[str, list[tuple[Any, Any, Any]]] = {path: [] for names in paths.values() for path in names}
    order: list[str] = []

    def hook(path: str) -> Callable[..., None]:
        def record(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            del module
            calls[path].append((args, kwargs, output))
            order.append(path)

        return record

    handles = [model.get_submodule(path).register_forward_hook(hook(path), with_kwargs=True) for path in calls]
    try:
        with torch.no_grad():
            output = call(model, samples.inputs)
    finally:
        for handle in handles:
            handle.remove()
    with torch.no_grad():
        again = call(model, samples.inputs)
    if not torch.equal(output, again):
        raise InputError("the model gives another output for the same input; switch off what is random or kept from pass to pass")
    for name, value in model.named_buffers():
        if not torch.equal(value, buffers[name]):
            raise InputError(f"buffer '{name}' changes during forward; a model must compute the same whenever it is called (model.eval(), or freeze it)")
    stage_of = {path: name for name, names in paths.items() for path in names}
    for path, made in calls.items():
        if len(made) != 1:
            raise InputError(
                f"stage '{stage_of[path]}': module '{path}' is called {len(made)} times a pass; it must be called once; cut the module that calls it"
            )
    ordered = sorted(paths, key=lambda name: order.index(paths[name][0]))
    return {name: _called(name, paths[name], calls) for name in ordered}


def _called(name: str, paths: tuple[str, ...], calls: Mapping[str, list[tuple[Any, Any, Any]]]) -> StageCall:
    made = {path: calls[path][0] for path in paths}
    return StageCall(name, paths, {path: (args, kwargs) for path, (args, kwargs, _) in made.items()}, {path: made[path][2] for path in paths})


def _step(model: nn.Module, two: StageCall, three: StageCall) -> Step:
    """The step of a stage, from how it was called with two and with three samples."""
    name = two.name
    check_leaves((two.arguments, two.result), f"stage '{name}'")
    reads = _by_sample(f"stage '{name}' reads", two.arguments, three.arguments)
    writes = _by_sample(f"stage '{name}' writes", two.result, three.result)
    if not reads or not writes:
        raise InputError(f"stage '{name}' must read and write tensors with a row for each sample; cut another module")
    if len(writes) != len(tensors_of(two.result)):
        raise InputError(f"stage '{name}' writes a tensor without a row for each sample; cut another module")
    layout = Layout(Template.of(two.arguments, lambda t: reads.get(id(t))), Template.of(two.result, lambda t: writes.get(id(t))))
    module = model.get_submodule(two.paths[0]) if len(two.paths) == 1 else chain_of(model, two)
    step = Step(name, tuple(f"{name}.in{k}" for k in range(len(reads))), tuple(f"{name}.out{k}" for k in range(len(writes))), module, layout)
    if len(two.paths) > 1:
        _check_chain(step, two)
    return step


def _check_chain(step: Step, called: StageCall) -> None:
    assert step.layout is not None
    with torch.no_grad():
        got = call_step(step, step.module, step.layout.arguments.take(called.arguments))
    if not all(torch.equal(one, other) for one, other in zip(got, step.layout.result.take(called.result), strict=True)):
        raise InputError(f"stage '{step.name}': its modules called one after the other give another output than in the model; make one stage of each")


def _by_sample(where: str, two: Any, three: Any) -> dict[int, Slot]:
    """Identity of each tensor that has a row for each sample -> its place; the others must not depend on the samples."""
    places: dict[int, Slot] = {}
    first, second = tensors_of(two), tensors_of(three)
    if len(first) != len(second):
        raise InputError(f"{where} {len(first)} tensors for 2 samples and {len(second)} for 3; cut another module")
    for one, other in zip(first, second, strict=True):
        grown = [(dim, sizes) for dim, sizes in enumerate(zip(one.shape, other.shape, strict=False)) if sizes[0] != sizes[1]]
        if one.ndim == other.ndim and [sizes for _, sizes in grown] == [(2, 3)]:
            places.setdefault(id(one), Slot(len(places), grown[0][0]))
        elif one.shape != other.shape or not torch.equal(one, other):
            raise InputError(f"{where} a tensor {tuple(one.shape)} for 2 samples and {tuple(other.shape)} for 3; one of its dimensions must be the samples")
    return places
