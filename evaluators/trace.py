"""Forward passes of one candidate after the other on the same samples, each running only what the one before has not."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from nas.cut import CutModel
from nas.graph import StageGraph, call_step


class Trace:
    """Step outputs of the candidate last run on one chunk; a step is run again only if a choice it depends on changed.

    The outputs reused are those that a fresh forward pass would compute, bit for bit: the same modules on the same values.
    """

    def __init__(self, graph: StageGraph, inputs: Mapping[str, Tensor]) -> None:
        self._graph = graph
        self._inputs = inputs
        self._written: list[tuple[Any, ...]] = []
        self._used: list[nn.Module] = []

    def run(self, chosen: Sequence[nn.Module], called: Sequence[nn.Module]) -> Any:
        """The graph's output with the chosen module at each step, where `called` is what computes in its place."""
        fresh: set[int] = set()
        first = not self._written
        values: dict[str, Any] = dict(self._inputs)
        for index, step in enumerate(self._graph.steps):
            changed = first or chosen[index] is not self._used[index] or any(source in fresh for source in self._graph.sources[index])
            if changed:
                fresh.add(index)
                written = call_step(step, called[index], tuple(values[name] for name in step.reads))
                if first:
                    self._written.append(written)
                else:
                    self._written[index] = written
            values.update(zip(step.writes, self._written[index], strict=True))
        self._used = list(chosen)
        return values[self._graph.output]

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return sum(v.nbytes for written in self._written for v in written if isinstance(v, Tensor))


class WholePass:
    """Whole forward passes of a model whose data flow nobody knows; keeps nothing."""

    nbytes = 0

    def __init__(self, graph: CutModel, inputs: Mapping[str, Tensor]) -> None:
        self._graph = graph
        self._inputs = inputs

    def run(self, chosen: Sequence[nn.Module], called: Sequence[nn.Module]) -> Any:
        """The model's output with the called module at each step."""
        del chosen
        return self._graph.run(self._inputs, {step.name: module for step, module in zip(self._graph.steps, called, strict=True)})


def trace(graph: StageGraph, inputs: Mapping[str, Tensor]) -> Trace | WholePass:
    """What runs candidates of this graph on these inputs."""
    return WholePass(graph, inputs) if isinstance(graph, CutModel) else Trace(graph, inputs)
