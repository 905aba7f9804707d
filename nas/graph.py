"""A model as a list of steps over named values: what assembly, calibration, cost and evaluation all stand on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import networkx as nx
import torch
from torch import nn

from nas.errors import ContractError, InputError, did_you_mean
from nas.layout import Layout

Values = Mapping[str, Any]
Observer = Callable[["Step", tuple[Any, ...], tuple[Any, ...]], None]
"""Called after each step with what it read and what it wrote."""


@dataclass(frozen=True, slots=True)
class Step:
    """One module call of a staged model: reads named values, writes named values.

    The module is called with the read values as positional arguments and returns the written ones: a tuple, or the bare value
    when there is one. A later step may write a name again; readers see the latest. A `layout` says otherwise how the module is
    called and what of its result is written.
    """

    name: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    module: nn.Module
    layout: Layout | None = None


@dataclass(frozen=True)
class StageGraph:
    """Steps in execution order, from named `inputs` to one named `output`."""

    inputs: tuple[str, ...]
    steps: tuple[Step, ...]
    output: str

    def __post_init__(self) -> None:
        names = [step.name for step in self.steps]
        if len(set(names)) != len(names):
            double = next(name for name in names if names.count(name) > 1)
            raise InputError(f"graph has two steps named '{double}'; names must differ")
        known = set(self.inputs)
        for step in self.steps:
            for name in step.reads:
                if name not in known:
                    raise InputError(f"step '{step.name}' reads '{name}', which no earlier step writes{did_you_mean(name, known)}")
            known.update(step.writes)
        if self.output not in known:
            raise InputError(f"graph output '{self.output}' is written by no step{did_you_mean(self.output, known)}")

    def __getitem__(self, name: str) -> Step:
        """The step with that name."""
        for step in self.steps:
            if step.name == name:
                return step
        raise InputError(f"graph has no step '{name}'{did_you_mean(name, [s.name for s in self.steps])}")

    def run(self, inputs: Values, blocks: Mapping[str, nn.Module] | None = None, observe: Observer | None = None) -> Any:
        """The output for the given inputs, with other modules at the steps that `blocks` names."""
        values = dict(inputs)
        for step in self.steps:
            arguments = tuple(values[name] for name in step.reads)
            written = call_step(step, (blocks or {}).get(step.name, step.module), arguments)
            values.update(zip(step.writes, written, strict=True))
            if observe is not None:
                observe(step, arguments, written)
        return values[self.output]

    def passed(self, inputs: Values) -> dict[str, tuple[tuple[Any, ...], tuple[Any, ...]]]:
        """Step name -> what it reads and writes in a forward pass of the teacher."""
        found: dict[str, tuple[tuple[Any, ...], tuple[Any, ...]]] = {}
        with torch.no_grad():
            self.run(inputs, observe=lambda step, arguments, written: found.update({step.name: (arguments, written)}))
        return found

    @property
    def device(self) -> torch.device | None:
        """Where the modules are; None if none of them has a weight."""
        return next((tensor.device for step in self.steps for tensor in (*step.module.parameters(), *step.module.buffers())), None)

    @cached_property
    def sources(self) -> tuple[tuple[int, ...], ...]:
        """For each step, the index of the step that wrote each value it reads; -1 for an input of the graph."""
        writer = dict.fromkeys(self.inputs, -1)
        found = []
        for index, step in enumerate(self.steps):
            found.append(tuple(writer[name] for name in step.reads))
            writer.update(dict.fromkeys(step.writes, index))
        return tuple(found)

    @cached_property
    def dag(self) -> "nx.DiGraph[str]":
        """Data flow between steps: one node a step, one edge for each pair that share values, named in `values`."""
        dag: nx.DiGraph[str] = nx.DiGraph()
        dag.add_nodes_from(step.name for step in self.steps)
        for step, sources in zip(self.steps, self.sources, strict=True):
            for name, source in zip(step.reads, sources, strict=True):
                if source < 0:
                    continue
                origin = self.steps[source].name
                if dag.has_edge(origin, step.name):
                    dag.edges[origin, step.name]["values"] += (name,)
                else:
                    dag.add_edge(origin, step.name, values=(name,))
        return dag

    @cached_property
    def ancestors(self) -> dict[str, frozenset[str]]:
        """Step name -> the step itself and all steps its output depends on."""
        return {step.name: frozenset({step.name, *nx.ancestors(self.dag, step.name)}) for step in self.steps}

    def check_stages(self, stages: Sequence[str]) -> None:
        """Raises unless every stage is a step of this graph."""
        for stage in stages:
            self[stage]


def call_step(step: Step, module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """What the module writes at this step, always as a tuple of `len(step.writes)` values."""
    if step.layout is not None:
        try:
            return step.layout.call(module, arguments)
        except ContractError as error:
            raise ContractError(f"the module at step '{step.name}' {error}") from error
    result = module(*arguments)
    written = result if isinstance(result, tuple) else (result,)
    if len(written) != len(step.writes):
        raise ContractError(f"the module at step '{step.name}' must write {step.writes}, wrote {len(written)} values")
    return written


class CalledByStep(nn.Module):
    """A module called as its step calls it: with the values read, in order."""

    def __init__(self, step: Step, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self._step = step

    def forward(self, *arguments: Any) -> tuple[Any, ...]:
        """What the step writes."""
        return call_step(self._step, self.module, arguments)
