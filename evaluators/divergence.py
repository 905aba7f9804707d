"""The divergence of assembled candidates from the teacher (Eq. 11 of [TOC-SR]), measured with reuse of step outputs and racing."""

import hashlib
import inspect
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nas.cut import CutModel
from nas.data import Samples
from nas.errors import ContractError, InputError
from nas.evaluators.cache import EvaluationCache
from nas.fingerprint import code_identity
from nas.graph import StageGraph, call_step
from nas.problem import Floats
from nas.space import Candidate
from nas.trial import Measurement

Divergence = Callable[..., Tensor]
"""(teacher output, candidate output), each `(B, ...)` -> per-sample values `(B,)`; one that takes three is also given the samples' target."""

_VERSION = 1  # of the numbers: raise it when the same candidate would measure differently
_RACING_Z = 4.0  # standard errors between the mean and eps before a verdict counts as clear


def mean_squared_error(teacher: Tensor, candidate: Tensor) -> Tensor:
    """Mean over elements of the squared difference, `(B,)`: L_gen, Eq. (11) of [TOC-SR]."""
    return (teacher - candidate).square().flatten(1).mean(1)


def divergence_arguments(divergence: Divergence, samples: Samples) -> int:
    """How many of (teacher output, candidate output, target) it takes.

    Raises:
        InputError: it takes another number, or the target of samples that have none.
    """
    required = [p for p in inspect.signature(divergence).parameters.values() if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(required) not in (2, 3):
        raise InputError(f"divergence '{_name(divergence)}' must take the teacher's output, the candidate's and perhaps the target, takes {len(required)}")
    if len(required) == 3 and samples.target is None:
        raise InputError(f"divergence '{_name(divergence)}' takes a target, and the samples have none; give one with target=")
    return len(required)


def _name(divergence: Divergence) -> str:
    return str(getattr(divergence, "__name__", divergence))


def clustered_stderr(values: Floats, groups: np.ndarray) -> float:
    """Standard error of the mean of `values` `(n,)` whose errors are correlated inside a group; 0 for a single group."""
    _, owner = np.unique(groups, return_inverse=True)
    sums = np.bincount(owner, weights=values - values.mean())
    n_groups = len(sums)
    return float(np.sqrt(n_groups / (n_groups - 1) * np.square(sums).sum()) / len(values)) if n_groups > 1 else 0.0


@dataclass(frozen=True, slots=True)
class Settings:
    """How candidates are measured. `chunk` samples at a time; racing may stop after `min_chunks`; `reuse_mb` bounds kept step outputs."""

    chunk: int = 32
    min_chunks: int = 2
    reuse_mb: int = 1024


class _Trace:
    """Step outputs of the candidate last run on one chunk; a step is run again only if a choice it depends on changed.

    The outputs reused are those that a fresh forward pass would compute, bit for bit: the same modules on the same values.
    """

    def __init__(self, graph: StageGraph, inputs: Mapping[str, Tensor]) -> None:
        self._graph = graph
        self._inputs = inputs
        self._written: list[tuple[Any, ...]] = []
        self._used: list[nn.Module] = []

    def run(self, modules: Sequence[nn.Module]) -> Any:
        """The graph's output with the given module at each step."""
        fresh: set[int] = set()
        first = not self._written
        values: dict[str, Any] = dict(self._inputs)
        for index, step in enumerate(self._graph.steps):
            changed = first or modules[index] is not self._used[index] or any(source in fresh for source in self._graph.sources[index])
            if changed:
                fresh.add(index)
                written = call_step(step, modules[index], tuple(values[name] for name in step.reads))
                if first:
                    self._written.append(written)
                else:
                    self._written[index] = written
            values.update(zip(step.writes, self._written[index], strict=True))
        self._used = list(modules)
        return values[self._graph.output]

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return sum(v.nbytes for written in self._written for v in written if isinstance(v, Tensor))


class _WholePass:
    """Whole forward passes of a model whose data flow nobody knows; keeps nothing."""

    nbytes = 0

    def __init__(self, graph: CutModel, inputs: Mapping[str, Tensor]) -> None:
        self._graph = graph
        self._inputs = inputs

    def run(self, modules: Sequence[nn.Module]) -> Any:
        """The model's output with the given module at each step."""
        return self._graph.run(self._inputs, {step.name: module for step, module in zip(self._graph.steps, modules, strict=True)})


def _trace(graph: StageGraph, inputs: Mapping[str, Tensor]) -> "_Trace | _WholePass":
    return _WholePass(graph, inputs) if isinstance(graph, CutModel) else _Trace(graph, inputs)


class DivergenceEvaluator:
    """Measures candidates of one graph on one sample set.

    Args:
        graph: the teacher.
        stages: names of the searchable steps, in the order of a candidate's entries.
        blocks: for each stage, the module of each choice; entry 0 is the teacher's.
        keys: for each stage, the content key of each choice.
        samples: what to run on, on the device to run on.
        identity: what else the values depend on (teacher), for the cache.
        divergence: per-sample distance between outputs.
        cache: values known from earlier runs; None measures everything.
    """

    def __init__(
        self,
        graph: StageGraph,
        stages: Sequence[str],
        blocks: Sequence[Sequence[nn.Module]],
        keys: Sequence[Sequence[str]],
        samples: Samples,
        *,
        identity: str,
        divergence: Divergence = mean_squared_error,
        cache: EvaluationCache | None = None,
        settings: Settings | None = None,
    ) -> None:
        self.samples = samples
        self._graph, self._blocks, self._keys = graph, blocks, keys
        self._position = [next(i for i, step in enumerate(graph.steps) if step.name == name) for name in stages]
        self._divergence, self._cache, self._settings = divergence, cache, settings or Settings()
        self._n_arguments = divergence_arguments(divergence, samples)
        name = code_identity(divergence)
        dtype = str(next(iter(samples.inputs.values())).device.type)
        self._identity = [identity, samples.fingerprint, name, dtype, self._settings.chunk, _VERSION, torch.__version__]
        self._chunks = list(samples.chunks(self._settings.chunk))
        self._groups = samples.groups.numpy()
        self._traces: dict[int, _Trace | _WholePass] = {}
        self._teacher: dict[int, Tensor] = {}

    @property
    def n_samples(self) -> int:
        """Samples of a full measurement."""
        return len(self.samples)

    @property
    def teacher_variance(self) -> float:
        """Variance of the teacher's output over samples and elements: what a mean squared divergence is relative to."""
        return float(self.outputs((0,) * len(self._blocks)).float().var())

    def modules(self, candidate: Candidate) -> list[nn.Module]:
        """The module at each step of the graph: assembly by reference, nothing is copied (Eq. 9)."""
        modules = [step.module for step in self._graph.steps]
        for position, blocks, k in zip(self._position, self._blocks, candidate, strict=True):
            modules[position] = blocks[k]
        return modules

    def outputs(self, candidate: Candidate) -> Tensor:
        """The candidate's output on all samples, `(n, ...)`."""
        return torch.cat([self._run(i, candidate) for i in range(len(self._chunks))])

    def measure(self, candidates: Sequence[Candidate], eps: Sequence[float] = ()) -> list[Measurement]:
        """Mean divergence of each candidate with its clustered standard error.

        With `eps`, a candidate is dropped after a chunk once its mean lies 4 standard errors from every eps (racing);
        without, all samples are used. Candidates are run in lexicographic order, which shares the most step outputs.
        """
        started = time.monotonic()
        keys = [self._key(candidate) for candidate in candidates]
        values = [self._cache.get(key) if self._cache else np.empty(0) for key in keys]
        known = [len(v) for v in values]
        used = [self._decided(v, eps) for v in values]
        order = sorted(range(len(candidates)), key=lambda i: candidates[i])
        for number in range(len(self._chunks)):
            for i in order:
                if used[i] is None and len(values[i]) == number * self._settings.chunk:
                    values[i] = np.concatenate([values[i], self._measure_chunk(number, candidates[i])])
                    used[i] = self._verdict(values[i], eps)
        for key, value, had in zip(keys, values, known, strict=True):
            if self._cache is not None and len(value) > had and np.isfinite(value).all():
                self._cache.put(key, value)
        seconds = (time.monotonic() - started) / max(1, sum(len(v) > had for v, had in zip(values, known, strict=True)))
        return [self._measurement(v[: n or len(v)], 0.0 if len(v) == had else seconds, len(v) == had) for v, n, had in zip(values, used, known, strict=True)]

    def known(self, candidate: Candidate, eps: Sequence[float] = ()) -> Measurement | None:
        """The measurement as the cache holds it; None if samples are left to run."""
        values = self.values(candidate)
        used = self._decided(values, eps)
        return None if used is None else self._measurement(values[:used], 0.0, True)

    def values(self, candidate: Candidate) -> Floats:
        """The divergence of each sample as far as the cache holds them, `(m,)`."""
        return self._cache.get(self._key(candidate)) if self._cache else np.empty(0)

    def remember(self, candidate: Candidate, values: Floats) -> None:
        """Keeps values that another process measured."""
        if self._cache is not None and len(values):
            self._cache.put(self._key(candidate), values)

    def _measurement(self, values: Floats, seconds: float, cached: bool) -> Measurement:
        if not np.isfinite(values).all():
            return Measurement(None, n_samples=len(values), seconds=seconds, reason=f"divergence is not finite ({values[~np.isfinite(values)][0]})")
        stderr = clustered_stderr(values, self._groups[: len(values)])
        return Measurement(float(values.mean()), stderr, len(values), seconds, complete=len(values) == self.n_samples, cached=cached)

    def _decided(self, values: Floats, eps: Sequence[float]) -> int | None:
        """Number of cached samples at which racing would have stopped, so that a cache never changes a result; None if it goes on."""
        size = self._settings.chunk
        for end in (*range(size, len(values), size), len(values)):
            used = self._verdict(values[:end], eps)
            if used is not None:
                return used
        return None

    def _verdict(self, values: Floats, eps: Sequence[float]) -> int | None:
        if len(values) == self.n_samples or (len(values) and not np.isfinite(values).all()):
            return len(values)
        if not eps or len(values) < self._settings.min_chunks * self._settings.chunk:
            return None
        mean, stderr = values.mean(), clustered_stderr(values, self._groups[: len(values)])
        return len(values) if all(abs(mean - e) > _RACING_Z * stderr for e in eps) else None

    def _measure_chunk(self, number: int, candidate: Candidate) -> Floats:
        if number not in self._teacher:
            self._teacher[number] = self._run(number, (0,) * len(candidate))
        output = self._run(number, candidate)
        outputs: tuple[Any, ...] = (self._teacher[number], output, self._chunks[number].target)
        with torch.no_grad():
            values = self._divergence(*outputs[: self._n_arguments])
        if not isinstance(values, Tensor) or values.shape != (len(output),):
            got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ContractError(f"divergence '{_name(self._divergence)}' must give one value a sample, ({len(output)},), got {got}")
        return values.double().cpu().numpy()

    def _run(self, number: int, candidate: Candidate) -> Tensor:
        trace = self._traces.pop(number, None) or _trace(self._graph, self._chunks[number].inputs)
        with torch.no_grad():
            output: Tensor = trace.run(self.modules(candidate))
        self._traces[number] = trace  # most recently used last
        while len(self._traces) > 1 and sum(t.nbytes for t in self._traces.values()) > self._settings.reuse_mb << 20:
            del self._traces[next(iter(self._traces))]
        return output

    def _key(self, candidate: Candidate) -> str:
        blocks = [keys[k] for keys, k in zip(self._keys, candidate, strict=True)]
        return hashlib.sha256(json.dumps([self._identity, blocks]).encode()).hexdigest()
