"""Latency of every choice of every stage, measured on the device: an additive table, kept with the setting it was measured in.

A block is called alone and three times in a row; half the difference is the time of one call whose launch is hidden behind the one before (slope). The
three are calls of three copies, and before them as many bytes are written as the network's weights take: in the network, too, no block finds its
weights in the cache. What the whole teacher takes beyond the sum of its slopes is what every candidate pays once for starting, switching and waiting
(intercept). A candidate's latency is the sum of its slopes and the intercept.
"""

import contextlib
import copy
import functools
import json
import math
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nas.errors import DamagedFile, InputError
from nas.files import Form, read_json, write_whole
from nas.graph import CalledByStep, StageGraph, Step, Values
from nas.problem import Floats
from nas.progress import Progress
from nas.space import Candidate, Stage

ROUNDS = 15  # timed calls of each kind; the median counts
_WARM = 2
_REPEATS = 3

_FORM: Form = {
    "setting": {"device": str, "dtype": str, "batch": int, "shapes": {str: [int]}, "threads": int, "torch": str, "clock": str},
    "stages": {str: {str: int | float}}, "fixed": int | float, "overhead": int | float,
}  # fmt: skip
_DECISIVE = ("device", "dtype", "batch", "shapes")

Blocks = Mapping[tuple[str, str], nn.Module]


@dataclass(frozen=True, slots=True)
class Setting:
    """What a latency depends on besides the modules. `shapes` are those of the graph's inputs, batch first.

    Threads, torch's version and the clock are for the reader: a search may run on other threads than the network it makes. On one CPU thread the
    clock is that thread's own, which other processes do not disturb; else it is the wall's.
    """

    device: str
    dtype: str
    batch: int
    shapes: Mapping[str, Sequence[int]]
    threads: int
    torch: str
    clock: str = "wall"

    @classmethod
    def of(cls, inputs: Mapping[str, Tensor]) -> "Setting":
        """The setting in which these inputs would be run here and now."""
        first = next(iter(inputs.values()))
        floating = next((str(value.dtype) for value in inputs.values() if value.is_floating_point()), str(first.dtype))
        shapes = {name: list(value.shape) for name, value in inputs.items()}
        return cls(
            _device_name(first.device), floating.removeprefix("torch."), len(first), shapes, torch.get_num_threads(), torch.__version__, _clock(first.device)[0]
        )


@dataclass(frozen=True)
class LatencyTable:
    """Milliseconds: stage -> choice -> one call; all fixed steps together; what starting and waiting cost once."""

    setting: Setting
    stages: Mapping[str, Mapping[str, float]]
    fixed: float
    overhead: float

    @property
    def teacher_ms(self) -> float:
        """The whole teacher."""
        return self.fixed + self.overhead + sum(choices["teacher"] for choices in self.stages.values())

    def rows(self, stages: Sequence[Stage]) -> tuple[Floats, float]:
        """As in a cost table: `(S, K)`, NaN where a stage has fewer choices, and the fixed part.

        Raises:
            InputError: the table lacks a choice.
        """
        table = np.full((len(stages), max(len(stage.choices) for stage in stages)), np.nan)
        for s, stage in enumerate(stages):
            for k, choice in enumerate(stage.choices):
                if choice.name not in self.stages.get(stage.name, {}):
                    raise InputError(f"the latency table has no '{stage.name}/{choice.name}'; measure it again: nas plan --measure-latency")
                table[s, k] = self.stages[stage.name][choice.name]
        return table, self.fixed + self.overhead

    def check(self, setting: Setting) -> "LatencyTable":
        """The table itself, if it was measured in this setting.

        Raises:
            InputError: it was not; names what differs.
        """
        here, there = asdict(setting), asdict(self.setting)
        differing = [f"{name}: {there[name]} in the table, {here[name]} here" for name in _DECISIVE if here[name] != there[name]]
        if differing:
            raise InputError(f"the latency table is of another setting ({'; '.join(differing)}); measure it here: nas plan --measure-latency")
        return self


def measure_latency(graph: StageGraph, stages: Sequence[Stage], blocks: Blocks, inputs: Values, progress: Progress) -> LatencyTable:
    """Times every choice of every stage and every fixed step on the values that the teacher reads there."""
    read = {name: arguments for name, (arguments, _) in graph.passed(inputs).items()}
    searched = {stage.name for stage in stages}
    work = [(step.name, "", step.module) for step in graph.steps if step.name not in searched]
    for stage in stages:
        work += [(stage.name, c.name, graph[stage.name].module if c.recipe is None else blocks[stage.name, c.name]) for c in stage.choices]
    found: dict[str, dict[str, float]] = {stage.name: {} for stage in stages}
    fixed = 0.0
    weights = torch.empty(sum(parameter.numel() for step in graph.steps for parameter in step.module.parameters()), device=next(iter(inputs.values())).device)
    for step, choice, module in progress.track(work, "latency"):
        slope = call_ms(graph[step], module.eval(), read[step], weights)
        if choice:
            found[step][choice] = slope
        else:
            fixed += slope
    teacher = fixed + sum(choices["teacher"] for choices in found.values())
    return LatencyTable(Setting.of(inputs), found, fixed, max(0.0, _whole_ms(graph, {}, inputs) - teacher))


def call_ms(step: Step, module: nn.Module, arguments: tuple[Any, ...], others: Tensor) -> float:
    """Milliseconds of one call of a module at a step, among several, median after a warm-up. `others` is written before each timing."""
    once: list[float] = []
    several: list[float] = []
    modules = [module, *(copy.deepcopy(module) for _ in range(_REPEATS - 1))]
    every = modules if step.layout is None else [CalledByStep(step, one) for one in modules]
    for _ in range(_WARM + ROUNDS):
        for times, calls in ((once, every[:1]), (several, every)):
            others.zero_()
            times.append(_timed(calls, arguments))
    alone = statistics.median(once[_WARM:])
    return min(alone, max(0.0, (statistics.median(several[_WARM:]) - alone) / (_REPEATS - 1)))


def _whole_ms(graph: StageGraph, chosen: Mapping[str, nn.Module], inputs: Values) -> float:
    """Milliseconds of a forward pass with these modules in place, median after a warm-up."""
    whole = functools.partial(_run, graph, chosen, tuple(inputs))
    return statistics.median([_timed([whole], tuple(inputs.values())) for _ in range(_WARM + ROUNDS)][_WARM:])


@dataclass(frozen=True, slots=True)
class LatencyCheck:
    """Predicted and measured milliseconds of whole candidates, in pairs."""

    predicted: tuple[float, ...]
    measured: tuple[float, ...]

    @property
    def errors(self) -> tuple[float, float]:
        """Median and largest relative error."""
        relative = [abs(p - m) / m for p, m in zip(self.predicted, self.measured, strict=True)]
        return statistics.median(relative), max(relative)


def check_latency(table: LatencyTable, graph: StageGraph, stages: Sequence[Stage], blocks: Blocks, inputs: Values, n: int = 20, seed: int = 0) -> LatencyCheck:
    """The table's sums beside whole forward passes of `n` random candidates."""
    rows, fixed = table.rows(stages)
    random = np.random.default_rng(seed)
    predicted, measured = [], []
    for _ in range(n):
        candidate: Candidate = tuple(int(random.integers(len(stage.choices))) for stage in stages)
        chosen = {stage.name: blocks[stage.name, stage.choices[k].name].eval() for stage, k in zip(stages, candidate, strict=True) if stage.choices[k].recipe}
        predicted.append(fixed + sum(float(rows[s, k]) for s, k in enumerate(candidate)))
        measured.append(_whole_ms(graph, chosen, inputs))
    return LatencyCheck(tuple(predicted), tuple(measured))


def write_latency(path: Path, table: LatencyTable) -> None:
    """Writes a table, whole or not at all.

    Raises:
        InputError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(asdict(table), indent=1).encode())
    except OSError as error:
        raise InputError(f"cannot write the latency table {path}: {error.strerror}; set NAS_HOME to a writable folder") from error


def read_latency(path: Path) -> LatencyTable:
    """The table in a file.

    Raises:
        InputError: there is none, or it is not such a table.
    """
    if not path.exists():
        raise InputError("no latency was measured for this space on this kind of device; run: nas plan --measure-latency")
    try:
        content = read_json(path, _FORM)
    except DamagedFile as error:
        raise InputError(f"latency table cannot be read ({error}); measure it again: nas plan --measure-latency") from error
    numbers = [content["fixed"], content["overhead"], *(value for choices in content["stages"].values() for value in choices.values())]
    if not all(0 <= number < math.inf for number in numbers):
        raise InputError(f"latency table {path} must hold numbers of at least 0; measure it again: nas plan --measure-latency")
    setting = Setting(**{field.name: content["setting"][field.name] for field in fields(Setting)})
    return LatencyTable(setting, content["stages"], float(content["fixed"]), float(content["overhead"]))


def _run(graph: StageGraph, chosen: Mapping[str, nn.Module], names: Sequence[str], *values: Tensor) -> Any:
    return graph.run(dict(zip(names, values, strict=True)), chosen)


def _timed(calls: Sequence[Callable[..., Any]], arguments: tuple[Any, ...]) -> float:
    """Milliseconds of the calls in a row, the last one's result waited for."""
    _wait(arguments)
    clock = _clock(next((value.device for value in arguments if isinstance(value, Tensor)), torch.device("cpu")))[1]
    started = clock()
    with torch.no_grad():
        result = None
        for call in calls:
            result = call(*arguments)
    _wait(result if isinstance(result, tuple) else (result,))
    return 1000 * (clock() - started)


def _clock(device: torch.device) -> tuple[str, Callable[[], float]]:
    """The name of the clock for a device and the clock itself, in seconds."""
    if device.type == "cpu" and torch.get_num_threads() == 1:
        return "thread", time.thread_time
    return "wall", time.perf_counter


def _wait(values: Sequence[Any]) -> None:
    for value in values:
        if isinstance(value, Tensor) and value.is_cuda:
            torch.cuda.synchronize(value.device)
            return


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()
