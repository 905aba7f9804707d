"""The graph of a cut model by torch.fx, so that candidates share the outputs of steps they agree on.

Only the code around stages is traced: a module with no stage inside is one call. What lies between stages is grouped by the stages it
depends on, one step a group, so nothing runs again that no changed stage reaches.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import networkx as nx
import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from nas.cut import CutModel
from nas.data import Samples
from nas.graph import StageGraph, Step
from nas.layout import Slot, Template
from nas.model_call import ModelCall


class NotTraceable(Exception):  # not an error of the user's: there is always the cut model itself
    """Why a model has no graph."""


@dataclass(frozen=True)
class TracedModel(StageGraph):
    """The steps of a cut model, with the data flow between them; `whole` is the model it was made from."""

    whole: CutModel


def trace(whole: CutModel, samples: Samples) -> TracedModel:
    """The cut model as a graph of steps, proven to compute the model's own output bit for bit.

    Raises:
        NotTraceable: with the reason.
    """
    try:
        graph = _Units(whole).graph()
    except NotTraceable:
        raise
    except Exception as error:  # tracing runs the user's code on proxies, which may fail in any way
        raise NotTraceable(f"tracing failed: {first_line(error)}") from error
    return proven(graph, whole, samples)


def first_line(error: Exception) -> str:
    """What an error says, in short."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def proven(graph: TracedModel, whole: CutModel, samples: Samples) -> TracedModel:
    """The graph, which computes the model's own output bit for bit, on one sample as on several.

    Raises:
        NotTraceable: it does not, or its steps do not share out the parameters.
    """
    for n in (1, 3):
        inputs = samples.rows(slice(0, n)).inputs
        with torch.no_grad():
            if not torch.equal(graph.run(inputs), whole.run(inputs)):
                raise NotTraceable("the traced graph gives another output")
    counted = [id(parameter) for step in graph.steps for parameter in step.module.parameters()]
    if sorted(counted) != sorted({id(parameter) for parameter in whole.model.parameters()}):
        raise NotTraceable("a parameter is used at two places between stages, or at none")
    return graph


class _Tracer(fx.Tracer):
    def __init__(self, containers: set[str]) -> None:
        super().__init__()
        self._containers = containers

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        del m
        return module_qualified_name not in self._containers


class _Root(nn.Module):
    """A model called with its inputs one by one, and the output that counts."""

    def __init__(self, model: nn.Module, call: ModelCall, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self._call, self._names = model, call, tuple(names)

    def run(self, *inputs: Any) -> Any:
        result = self._call.run(self.model, dict(zip(self._names, inputs, strict=True)))
        if self._call.output is not None:
            return self._call.select(result)
        found = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, fx.Proxy)]
        if len(found) != 1:
            raise NotTraceable(f"the model returns {len(found)} values")
        return found[0]


_ROOTS: Mapping[int, Callable[..., Any]] = {  # fx reads the number of inputs from the signature
    1: lambda self, a: self.run(a),
    2: lambda self, a, b: self.run(a, b),
    3: lambda self, a, b, c: self.run(a, b, c),
    4: lambda self, a, b, c, d: self.run(a, b, c, d),
}


class Segment(nn.Module):
    """What lies between stages: traced code, called with plain values; the containers that stages return are filled first."""

    def __init__(self, code: fx.GraphModule, templates: Sequence[Template | None]) -> None:
        super().__init__()
        self.code = code
        self._templates = tuple(templates)

    def forward(self, *values: Any) -> tuple[Any, ...]:
        """What the code writes."""
        left = list(values)
        arguments = []
        for template in self._templates:
            taken = [left.pop(0) for _ in range(template.n_slots if template else 1)]
            arguments.append(template.fill(taken) if template else taken[0])
        result: tuple[Any, ...] = self.code(*arguments)
        return result


class _Units:
    """Nodes of the traced code, as stages and groups between them."""

    def __init__(self, whole: CutModel) -> None:
        self.whole = whole
        root = _Root(whole.model, whole.call, whole.inputs)
        if len(whole.inputs) not in _ROOTS:
            raise NotTraceable(f"the model takes {len(whole.inputs)} inputs, at most {max(_ROOTS)} are traced")
        kind = type("Root", (_Root,), {"forward": _ROOTS[len(whole.inputs)]})
        root.__class__ = kind
        paths = [f"model.{path}" for names in whole.paths.values() for path in names]
        containers = {"model", *(path.rsplit(".", k)[0] for path in paths for k in range(1, path.count(".") + 1))}
        traced = _Tracer(containers).trace(root)
        self.root, self.nodes = root, list(traced.nodes)
        self.stage_of: dict[fx.Node, str] = {}  # the node that stands for a stage's output
        self.inner: set[fx.Node] = set()  # the other modules of a stage
        for name, names in whole.paths.items():
            calls = [next((n for n in self.nodes if n.op == "call_module" and n.target == f"model.{path}"), None) for path in names]
            if any(call is None for call in calls):
                raise NotTraceable(f"stage '{name}' is not called by the traced code")
            *before, last = (call for call in calls if call is not None)
            self.stage_of[last] = name
            self.inner |= set(before)
        self.first = {name: next(n for n in self.nodes if n.target == f"model.{names[0]}") for name, names in whole.paths.items()}
        self.unit = self._assigned()

    def _assigned(self) -> dict[fx.Node, Any]:
        """Each node's unit: its stage's name, or the set of stages that it depends on."""
        above: dict[fx.Node, frozenset[str]] = {}
        unit: dict[fx.Node, Any] = {}
        for node in self.nodes:
            above[node] = frozenset().union(*(above[n] | ({self.stage_of[n]} if n in self.stage_of else set()) for n in node.all_input_nodes))
            if node.op not in ("placeholder", "output") and node not in self.inner:
                unit[node] = self.stage_of.get(node, above[node])
        return unit

    def graph(self) -> TracedModel:
        """All steps in an order that their values allow."""
        order: nx.DiGraph[Any] = nx.DiGraph()
        order.add_nodes_from(dict.fromkeys(self.unit.values()))
        for node, unit in self.unit.items():
            start = self.first[self.stage_of[node]] if node in self.stage_of else node
            for source in start.all_input_nodes:
                if source in self.unit and self.unit[source] != unit:
                    order.add_edge(self.unit[source], unit)
        position = {unit: k for k, unit in enumerate(order)}
        steps: list[Step] = []
        for unit in nx.lexicographical_topological_sort(order, key=lambda unit: position[unit]):
            step = self._stage(unit) if isinstance(unit, str) else self._segment(unit, f"between {len(steps)}")
            if step is not None:
                steps.append(step)
        (output,) = next(n for n in self.nodes if n.op == "output").args
        if not isinstance(output, fx.Node):
            raise NotTraceable("the output is no single value")
        return TracedModel(self.whole.inputs, tuple(steps), self._names(output)[0], self.whole)

    def _names(self, node: fx.Node) -> tuple[str, ...]:
        """The names under which a node's value travels: one, or one a tensor for what a stage returns."""
        if node.op == "placeholder":
            return (self.whole.inputs[[n for n in self.nodes if n.op == "placeholder"].index(node)],)
        return self.whole[self.stage_of[node]].writes if node in self.stage_of else (node.name,)

    def _template(self, node: fx.Node) -> Template | None:
        layout = self.whole[self.stage_of[node]].layout if node in self.stage_of else None
        return None if layout is None else layout.result

    def _stage(self, name: str) -> Step:
        step, node = self.whole[name], self.first[name]
        assert step.layout is not None
        given = pytree.tree_leaves((node.args, node.kwargs), is_leaf=lambda value: isinstance(value, fx.Node))
        wanted = step.layout.arguments.leaves
        if len(given) != len(wanted):
            raise NotTraceable(f"stage '{name}' is called with containers that tracing does not see")
        reads: dict[int, str] = {}
        for leaf, source in zip(wanted, given, strict=True):
            if isinstance(leaf, Slot):
                if not isinstance(source, fx.Node) or len(self._names(source)) != 1:
                    raise NotTraceable(f"stage '{name}' reads a value that is computed outside of the traced code")
                if leaf.dim:
                    raise NotTraceable(f"stage '{name}' reads a tensor whose samples are not its first dimension")
                reads[leaf.index] = self._names(source)[0]
        return replace(step, reads=tuple(reads[k] for k in range(len(reads))))

    def _segment(self, unit: frozenset[str], name: str) -> Step | None:
        inside = [node for node, own in self.unit.items() if own == unit and node not in self.stage_of]
        code, copies, outside = fx.Graph(), {}, []
        for source in dict.fromkeys(s for node in inside for s in node.all_input_nodes if s not in inside):
            if source in self.inner:
                raise NotTraceable("what a stage computes on the way is read elsewhere")
            copies[source] = code.placeholder(source.name)
            outside.append(source)
        for node in inside:
            copies[node] = code.node_copy(node, lambda n: copies[n])
        written = [node for node in inside if any(self.unit.get(user) != unit for user in node.users)]
        if not written:
            return None
        code.output(tuple(copies[node] for node in written))
        module = Segment(fx.GraphModule(self.root, code), [self._template(source) for source in outside])
        reads = tuple(name for source in outside for name in self._names(source))
        return Step(name, reads, tuple(node.name for node in written), module.eval())


def is_measured_whole(graph: StageGraph) -> bool:
    """Whether what steps read is only known from a real pass: code written by others need not run without values."""
    return isinstance(graph, CutModel | TracedModel)
