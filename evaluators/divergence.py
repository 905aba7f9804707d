"""The divergence of assembled candidates from the teacher (Eq. 11 of [TOC-SR]), measured with reuse of step outputs and racing."""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nas.arguments import whole
from nas.data import Samples
from nas.evaluators.cache import EvaluationCache
from nas.evaluators.divergence_call import Divergence as Divergence
from nas.evaluators.divergence_call import divergence_arguments, per_sample
from nas.evaluators.memory import is_out_of_memory
from nas.evaluators.numerics import FP32, Numerics
from nas.evaluators.resident import ResidentModules
from nas.evaluators.trace import Trace, WholePass, trace
from nas.fingerprint import code_identity
from nas.graph import StageGraph
from nas.problem import Floats
from nas.space import Candidate
from nas.trial import Measurement

_VERSION = 1  # of the numbers: raise it when the same candidate would measure differently
_RACING_Z = 3.0  # standard errors between the estimated mean and eps before a verdict counts as clear


def mean_squared_error(teacher: Tensor, candidate: Tensor) -> Tensor:
    """Mean over elements of the squared difference, `(B,)`: L_gen, Eq. (11) of [TOC-SR]."""
    return (teacher - candidate).square().flatten(1).mean(1)


def _fetched(coming: Sequence[tuple[int, Tensor]]) -> list[tuple[int, Floats]]:
    """Values on the host, in one transfer."""
    if not coming:
        return []
    together = torch.split(torch.cat([values for _, values in coming]).cpu(), [len(values) for _, values in coming])
    return [(i, values.numpy()) for (i, _), values in zip(coming, together, strict=True)]


def clustered_stderr(values: Floats, groups: np.ndarray) -> float:
    """Standard error of the mean of `values` `(n,)` whose errors are correlated inside a group; 0 for a single group."""
    _, owner = np.unique(groups, return_inverse=True)
    sums = np.bincount(owner, weights=values - values.mean())
    n_groups = len(sums)
    return float(np.sqrt(n_groups / (n_groups - 1) * np.square(sums).sum()) / len(values)) if n_groups > 1 else 0.0


def estimated_mean(values: Floats, groups: np.ndarray, references: Sequence[Floats] = ()) -> tuple[float, float]:
    """The mean over all `n` samples, estimated from the first `m`, and its standard error, which is 0 once all are there.

    All candidates are measured on the same samples, so what makes a sample hard cancels against a candidate that was measured on all of them. Of the
    plain mean and the ratio estimators (Cochran, Sampling Techniques, chapter 6) to each reference, the surest is taken. Errors of a ratio
    estimator are taken to be proportional to the reference's values, since missing samples with large ones matter most.

    Args:
        values: of the first `m` samples, `(m,)`.
        groups: what each of all samples belongs to, `(n,)`.
        references: values of other candidates on all samples, `(n,)` each.
    """
    n, m, mean = len(groups), len(values), float(values.mean())
    if m == n or len(np.unique(groups[:m])) < 2:
        return mean, 0.0 if m == n else np.inf
    best = mean, float(np.sqrt(1 - m / n) * clustered_stderr(values, groups[:m]))
    for reference in references:
        seen, missing = reference[:m], reference[m:]
        if seen.sum() > 0:
            ratio = values.sum() / seen.sum()
            spread = m * clustered_stderr(values - ratio * seen, groups[:m]) / np.sqrt(np.square(seen).sum())
            left = np.square(missing).sum() + np.square(seen).sum() * (missing.sum() / seen.sum()) ** 2
            estimate = float((values.sum() + ratio * missing.sum()) / n), float(spread * np.sqrt(left) / n)
            best = min(best, estimate, key=lambda known: known[1])
    return best


@dataclass(frozen=True, slots=True)
class Settings:
    """How candidates are measured.

    Attributes:
        chunk: samples at a time.
        min_chunks: chunks after which racing may stop.
        reuse_mb: step outputs that are kept, at most.
        numerics: number format, memory layout, compilation.
        resident_mb: blocks on a CUDA device, at most; None is half of what is free there. The others wait in main memory.

    Raises:
        InputError: a value of another kind, or out of its range.
    """

    chunk: int = 32
    min_chunks: int = 1
    reuse_mb: int = 1024
    numerics: Numerics = FP32
    resident_mb: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("chunk", 1), ("min_chunks", 1), ("reuse_mb", 0), ("resident_mb", 0)):
            if name != "resident_mb" or self.resident_mb is not None:
                whole(f"evaluation's {name}", getattr(self, name), least)

    def resident_bytes(self, device: torch.device | None) -> float:
        """Bytes of blocks that may stay on the device."""
        if self.resident_mb is not None:
            return float(self.resident_mb << 20)
        return torch.cuda.mem_get_info(device)[0] / 2 if device is not None and device.type == "cuda" else float("inf")


class DivergenceEvaluator:
    """Measures candidates of one graph on one sample set.

    Args:
        graph: the teacher.
        stages: names of the searchable steps, in the order of a candidate's entries.
        blocks: for each stage, the module of each choice; entry 0 is the teacher's.
        keys: for each stage, the content key of each choice.
        samples: what to run on; chunks of samples that are not where the graph is are copied there as they are needed.
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
        self._device = graph.device or samples.device
        self._position = [next(i for i, step in enumerate(graph.steps) if step.name == name) for name in stages]
        self._divergence, self._cache, self._settings = divergence, cache, settings or Settings()
        self._n_arguments = divergence_arguments(divergence, samples)
        name = code_identity(divergence)
        self._identity = [identity, samples.fingerprint, name, self._device.type, self._settings.chunk, _VERSION, torch.__version__]
        if not self._settings.numerics.plain:
            self._identity.append(str(self._settings.numerics))
        self._resident = ResidentModules(self._device, self._settings.numerics.module, self._settings.resident_bytes(self._device))
        self._parts = 1  # micro-batches of a chunk
        self._near: tuple[int, Samples] | None = None
        self._chunks = list(samples.chunks(self._settings.chunk))
        self._groups = samples.groups.numpy()
        self._traces: dict[int, Trace | WholePass] = {}
        self._teacher: dict[int, Tensor] = {}
        self._whole: dict[Candidate, Floats] = {}  # values on all samples

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

    def numeric_error(self) -> float:
        """Mean squared error of the teacher's output under these numerics against fp32, as a share of its variance, on the first chunk."""
        teacher = (0,) * len(self._blocks)
        with torch.no_grad(), FP32.context(self._device):
            exact: Tensor = self._graph.run(self._chunk(0).inputs)
        return float((self._run(0, teacher).float() - exact).square().mean() / exact.float().var())

    def outputs(self, candidate: Candidate) -> Tensor:
        """The candidate's output on all samples, `(n, ...)`."""
        return torch.cat([self._run(i, candidate) for i in range(len(self._chunks))])

    def measure(self, candidates: Sequence[Candidate], eps: Sequence[float] = ()) -> list[Measurement]:
        """Mean divergence of each candidate with its clustered standard error.

        With `eps`, a candidate is dropped after a chunk once its mean is clearly on one side of every eps (racing);
        without, all samples are used. Candidates are run in lexicographic order, which shares the most step outputs.
        """
        return self._measure(candidates, eps, ())

    def measure_beside(self, candidate: Candidate, eps: Sequence[float], complete: Sequence[Candidate]) -> Measurement:
        """Like `measure`, compared with candidates that were measured on all samples."""
        return self._measure([candidate], eps, self._references(complete))[0]

    def _references(self, complete: Sequence[Candidate]) -> list[Floats]:
        """Their values on all samples, `(n,)` each: measured again where no cache holds them, so that a verdict never depends on the cache."""
        for candidate in complete:
            if candidate not in self._whole:
                self.remember(candidate, self.values(candidate))
            if candidate not in self._whole:
                self._measure([candidate], (), ())
        return [self._whole[candidate] for candidate in complete if candidate in self._whole]

    def _measure(self, candidates: Sequence[Candidate], eps: Sequence[float], references: Sequence[Floats]) -> list[Measurement]:
        started = time.monotonic()
        values = [self.values(candidate) for candidate in candidates]
        known = [len(v) for v in values]
        used = [self._decided(v, eps, references) for v in values]
        failed: dict[int, str] = {}
        order = sorted(range(len(candidates)), key=lambda i: candidates[i])
        coming: list[tuple[int, Tensor]] = []  # what the device computes meanwhile
        ahead = list(known)  # samples of each, those to come included
        for number in range(len(self._chunks)):
            for i in order:
                if used[i] is not None or ahead[i] != number * self._settings.chunk:
                    continue
                try:
                    coming.append((i, self._measure_chunk(number, candidates[i])))
                    ahead[i] += len(coming[-1][1])
                except MemoryError as error:
                    failed[i], used[i] = str(error), ahead[i]
            if eps or number == len(self._chunks) - 1:  # only a verdict waits for the device
                for i, some in _fetched(coming):
                    values[i] = np.concatenate([values[i], some])
                    used[i] = used[i] if used[i] is not None else self._verdict(values[i], eps, references)
                coming = []
        for candidate, value, had in zip(candidates, values, known, strict=True):
            if len(value) > had and np.isfinite(value).all():
                self._keep(candidate, value)
        seconds = (time.monotonic() - started) / max(1, sum(len(v) > had for v, had in zip(values, known, strict=True)))
        return [
            Measurement(None, n_samples=len(v), reason=failed[i])
            if i in failed
            else self._measurement(v[: n or len(v)], references, 0.0 if len(v) == had else seconds, len(v) == had)
            for i, (v, n, had) in enumerate(zip(values, used, known, strict=True))
        ]

    def known(self, candidate: Candidate, eps: Sequence[float] = (), complete: Sequence[Candidate] = ()) -> Measurement | None:
        """The measurement as the cache holds it; None if samples are left to run."""
        values, references = self.values(candidate), self._references(complete)
        used = self._decided(values, eps, references)
        return None if used is None else self._measurement(values[:used], references, 0.0, True)

    def values(self, candidate: Candidate) -> Floats:
        """The divergence of each sample as far as the cache holds them, `(m,)`."""
        return self._cache.get(self._key(candidate)) if self._cache else np.empty(0)

    def remember(self, candidate: Candidate, values: Floats) -> None:
        """Keeps values that another process measured."""
        if len(values) == self.n_samples:
            self._whole[candidate] = values
        if self._cache is not None and len(values) > len(self.values(candidate)):
            self._cache.put(self._key(candidate), values)

    def _keep(self, candidate: Candidate, values: Floats) -> None:
        """Keeps values measured here; in micro-batches they round otherwise, and are not those of the cache's key."""
        if self._parts == 1:
            self.remember(candidate, values)
        elif len(values) == self.n_samples:
            self._whole[candidate] = values

    def _measurement(self, values: Floats, references: Sequence[Floats], seconds: float, cached: bool) -> Measurement:
        n = len(values)
        if not np.isfinite(values).all():
            return Measurement(None, n_samples=n, seconds=seconds, reason=f"divergence is not finite ({values[~np.isfinite(values)][0]})")
        mean, noise = estimated_mean(values, self._groups, references)
        stderr = clustered_stderr(values, self._groups[:n])
        return Measurement(mean, stderr, n, seconds, complete=n == self.n_samples, cached=cached, attrs={"noise": noise})

    def _decided(self, values: Floats, eps: Sequence[float], references: Sequence[Floats]) -> int | None:
        """Number of cached samples at which racing would have stopped, so that a cache never changes a result; None if it goes on."""
        size = self._settings.chunk
        for end in (*range(size, len(values), size), len(values)):
            used = self._verdict(values[:end], eps, references)
            if used is not None:
                return used
        return None

    def _verdict(self, values: Floats, eps: Sequence[float], references: Sequence[Floats]) -> int | None:
        if len(values) == self.n_samples or (len(values) and not np.isfinite(values).all()):
            return len(values)
        if not eps or len(values) < self._settings.min_chunks * self._settings.chunk:
            return None
        mean, noise = estimated_mean(values, self._groups, references)
        return len(values) if all(abs(mean - e) > _RACING_Z * noise for e in eps) else None

    def _measure_chunk(self, number: int, candidate: Candidate) -> Tensor:
        """The divergence of each sample of a chunk, on the device, which nobody waits for."""
        if number not in self._teacher:
            self._teacher[number] = self._run(number, (0,) * len(candidate))
        output = self._run(number, candidate)
        outputs: tuple[Any, ...] = (self._teacher[number], output, self._chunk(number).target)
        return per_sample(self._divergence, outputs[: self._n_arguments]).double()

    def _chunk(self, number: int) -> Samples:
        """A chunk where it is computed with; the last one is kept."""
        if self._near is None or self._near[0] != number:
            self._near = number, self._chunks[number].to(self._device)
        return self._near[1]

    def _run(self, number: int, candidate: Candidate) -> Tensor:
        """The candidate's output on a chunk; micro-batches of half the size from the first time that memory does not suffice.

        Raises:
            MemoryError: it does not suffice for half a chunk either.
        """
        try:
            return self._passed(number, candidate)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error).splitlines()[0]
        self._traces.clear()
        self._resident.clear()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        size = self._settings.chunk // 2
        if self._parts == 1 and size:
            self._parts = 2
            return self._run(number, candidate)
        raise MemoryError(f"out of memory with {size or 1} samples at a time ({reason}); give a smaller chunk")

    def _passed(self, number: int, candidate: Candidate) -> Tensor:
        chosen, numerics, chunk = self.modules(candidate), self._settings.numerics, self._chunk(number)
        with torch.no_grad(), numerics.context(self._device):
            called = self._resident.fetch(chosen)
            if self._parts > 1:
                halves = chunk.chunks(max(1, self._settings.chunk // self._parts))
                return torch.cat([trace(self._graph, half.inputs).run(chosen, called) for half in halves])
            run = self._traces.pop(number, None) or trace(self._graph, chunk.inputs)
            output: Tensor = run.run(chosen, called)
        self._traces[number] = run  # most recently used last
        while len(self._traces) > 1 and sum(t.nbytes for t in self._traces.values()) > self._settings.reuse_mb << 20:
            del self._traces[next(iter(self._traces))]
        return output

    def _key(self, candidate: Candidate) -> str:
        blocks = [keys[k] for keys, k in zip(self._keys, candidate, strict=True)]
        return hashlib.sha256(json.dumps([self._identity, blocks]).encode()).hexdigest()
