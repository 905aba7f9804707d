"""The graph of a cut model by torch.export, for models that torch.fx cannot follow: control flow that depends on shapes alone is resolved by running it.

Every stage is one opaque operator while the model is exported, so what is left are the tensor operators between stages. As in `nas.traced` they are grouped by
the stages they depend on, one step a group.
"""

import json
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import networkx as nx
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from nas.cut import CutModel
from nas.data import Samples
from nas.graph import Step
from nas.layout import Slot
from nas.model_call import ModelCall
from nas.traced import NotTraceable, Segment, TracedModel, first_line, proven


@torch.library.custom_op("stage_nas::stage", mutates_args=())
def stage(reads: list[Tensor], number: int, writes: str) -> list[Tensor]:
    """What the stage of that number writes; `writes` are the shapes of one sample and the types, as JSON. Stands in graphs only, is never computed."""
    raise NotImplementedError(f"stage {number} is called outside of its graph")


@stage.register_fake
def _(reads: list[Tensor], number: int, writes: str) -> list[Tensor]:
    del number
    return [reads[0].new_empty((reads[0].shape[0], *shape), dtype=getattr(torch, dtype)) for shape, dtype in json.loads(writes)]


def export(whole: CutModel, samples: Samples) -> TracedModel:
    """The cut model as a graph of steps, proven to compute the model's own output bit for bit.

    Raises:
        NotTraceable: with the reason.
    """
    try:
        graph = _Parts(whole, _exported(whole, samples)).graph()
    except NotTraceable:
        raise
    except Exception as error:  # exporting runs the user's code on symbols, which may fail in any way
        raise NotTraceable(f"torch.export failed: {first_line(error)}") from error
    return proven(graph, whole, samples)


class _Portal(nn.Module):
    """Stands at a stage's place: called like its module, writes what the operator says."""

    def __init__(self, step: Step, number: int, writes: Sequence[Tensor]) -> None:
        super().__init__()
        assert step.layout is not None
        self._name, self._arguments, self._result, self._number = step.name, step.layout.arguments, step.layout.result, number
        self._writes = json.dumps([[list(value.shape[1:]), str(value.dtype).removeprefix("torch.")] for value in writes])

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        """The stage's outputs."""
        given, spec = pytree.tree_flatten((args, kwargs))
        if spec != self._arguments.spec:
            raise NotTraceable(f"stage '{self._name}' is called with other arguments when it is exported")
        # only what varies is read: transformers makes masks explicit while a model is exported, where it hands on None else
        reads = {own.index: value.movedim(own.dim, 0) for own, value in zip(self._arguments.leaves, given, strict=True) if isinstance(own, Slot)}
        written = torch.ops.stage_nas.stage([reads[k] for k in range(len(reads))], self._number, self._writes)
        return tuple(value.movedim(0, slot.dim) for value, slot in zip(written, self._result.slots, strict=True))


class _Called(nn.Module):
    """A model called with its inputs by name, and the output that counts."""

    def __init__(self, model: nn.Module, call: ModelCall) -> None:
        super().__init__()
        self.model, self._call = model, call

    def forward(self, inputs: Mapping[str, Tensor]) -> Any:
        """The output."""
        return self._call.select(self._call.run(self.model, inputs))


def _exported(whole: CutModel, samples: Samples) -> fx.GraphModule:
    """Tensor operators between stages; the number of samples is left open."""
    inputs = dict(samples.rows(slice(0, 3)).inputs)
    passed = whole.passed(inputs)
    portals = {name: _Portal(whole[name], number, passed[name][1]) for number, name in enumerate(whole.paths)}
    count = torch.export.Dim("samples", min=2, max=1 << 20)
    with whole.installed(portals), torch.no_grad():
        program = torch.export.export(
            _Called(whole.model, whole.call), (inputs,), dynamic_shapes=({name: {0: count} for name in inputs},), strict=False
        )  # fmt: skip
    code = program.module(check_guards=False)
    assert isinstance(code, fx.GraphModule)
    for node in reversed(list(code.graph.nodes)):
        if node.op in ("call_function", "get_attr") and not node.users:  # assertions on shapes, and what only they read
            code.graph.erase_node(node)
    return code


class _Parts:
    """The nodes of exported code as stages and the groups between them.

    A node is *carried* if it is a weight or a number made of shapes: each group has its own copy. The outputs of a stage travel under its own names.
    """

    def __init__(self, whole: CutModel, code: fx.GraphModule) -> None:
        self.whole, self.code, self.nodes = whole, code, list(code.graph.nodes)
        names = list(whole.paths)
        self.stages: dict[fx.Node, str] = {n: names[n.args[1]] for n in self.nodes if n.target is torch.ops.stage_nas.stage.default}
        if sorted(self.stages.values()) != sorted(names):
            raise NotTraceable("a stage is not called once by the exported code")
        order = pytree.tree_leaves({name: name for name in whole.inputs})
        self.inputs = dict(zip((n for n in self.nodes if n.op == "placeholder"), order, strict=True))
        self.unit = self._assigned()

    def _assigned(self) -> dict[fx.Node, Any]:
        """Each node's unit: its stage's name, or the set of stages that it depends on."""
        above: dict[fx.Node, frozenset[str]] = {}
        unit: dict[fx.Node, Any] = {}
        for node in self.nodes:
            above[node] = frozenset().union(*(above[n] | ({self.stages[n]} if n in self.stages else set()) for n in node.all_input_nodes))
            if node in self.stages:
                unit[node] = self.stages[node]
            elif node.op == "call_function" and not self._carried(node) and self._written_by_stage(node) is None:
                unit[node] = above[node]
        return unit

    def _carried(self, node: fx.Node) -> bool:
        return node.op == "get_attr" or (node.op == "call_function" and isinstance(node.meta.get("val"), int | float | bool | torch.SymInt | torch.SymFloat))

    def _written_by_stage(self, node: fx.Node) -> str | None:
        """The name of a stage's output."""
        if node.target is operator.getitem and node.args[0] in self.stages:
            return self.whole[self.stages[node.args[0]]].writes[int(node.args[1])]  # type: ignore[index,arg-type]
        return None

    def _name(self, node: fx.Node) -> str:
        return self.inputs.get(node) or self._written_by_stage(node) or node.name

    def _sources(self, node: fx.Node) -> Iterator[fx.Node]:
        """The tensors that a node reads, through what is carried."""
        for source in node.all_input_nodes:
            if self._carried(source):
                yield from self._sources(source)
            else:
                yield source

    def _unit_of(self, node: fx.Node) -> Any:
        """The unit that writes a tensor; None for the model's inputs."""
        made_by = node.args[0] if self._written_by_stage(node) else node
        return self.unit.get(made_by)  # type: ignore[arg-type]

    def graph(self) -> TracedModel:
        """All steps in an order that their values allow."""
        order: nx.DiGraph[Any] = nx.DiGraph()
        order.add_nodes_from(dict.fromkeys(self.unit.values()))
        for node, unit in self.unit.items():
            order.add_edges_from((before, unit) for source in self._sources(node) if (before := self._unit_of(source)) not in (None, unit))
        position = {unit: k for k, unit in enumerate(order)}
        steps: list[Step] = []
        for unit in nx.lexicographical_topological_sort(order, key=lambda unit: position[unit]):
            step = self._stage(unit) if isinstance(unit, str) else self._segment(unit, f"between {len(steps)}")
            if step is not None:
                steps.append(step)
        self._adopt_unread(steps)
        (output,) = self.nodes[-1].all_input_nodes
        return TracedModel(self.whole.inputs, tuple(steps), self._name(output), self.whole)

    def _adopt_unread(self, steps: Sequence[Step]) -> None:
        """Counts weights that no operator between stages reads, such as one that is handed to a stage, with the last step between stages."""
        known = {id(value) for step in steps for value in (*step.module.parameters(), *step.module.buffers())}
        last = next((step.module for step in reversed(steps) if isinstance(step.module, Segment)), None)
        for name, value in (*self.whole.model.named_parameters(), *self.whole.model.named_buffers()):
            if id(value) in known:
                continue
            if last is None:
                raise NotTraceable(f"weight '{name}' belongs to no step")
            add: Any = last.register_parameter if isinstance(value, nn.Parameter) else last.register_buffer
            add(f"unread_{name.replace('.', '__')}", value)
            known.add(id(value))

    def _stage(self, name: str) -> Step:
        node = next(node for node, own in self.stages.items() if own == name)
        reads: Any = node.args[0]
        return replace(self.whole[name], reads=tuple(self._name(source) for source in reads))

    def _segment(self, unit: frozenset[str], name: str) -> Step | None:
        inside = [node for node, own in self.unit.items() if own == unit and node not in self.stages]
        code, copies, outside = fx.Graph(), dict[fx.Node, fx.Node](), list(dict.fromkeys(s for n in inside for s in self._sources(n) if s not in inside))
        for source in outside:
            copies[source] = code.placeholder(source.name)

        def copied(node: fx.Node) -> fx.Node:
            if node not in copies:
                copies[node] = code.node_copy(node, copied)
            return copies[node]

        written = [node for node in inside if any(self.unit.get(user) != unit for user in node.users)]
        if not written:
            return None
        code.output(tuple(copied(node) for node in written))
        module = Segment(fx.GraphModule(self.code, code), [None] * len(outside))
        return Step(name, tuple(map(self._name, outside)), tuple(node.name for node in written), module.eval())
