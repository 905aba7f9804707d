"""What each stage of the teacher reads and writes on the `fit` samples: the data of feature-wise distillation (Eq. 7 of [TOC-SR])."""

import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from nas.amounts import AMOUNT, amount, scaled
from nas.blocks.shards import Shards, half_bytes, variance, without_rounding
from nas.data import Samples
from nas.devices import moved
from nas.errors import ContractError, InputError
from nas.graph import StageGraph, Step
from nas.home import nas_home
from nas.progress import Progress

MAX_DISK = "NAS_MAX_DISK"
"""Environment variable: how much room features may take on disk, also in worker processes."""

_Key = tuple[int, str]


class Features(Protocol):
    """What calibration asks of a stage's features, wherever they are."""

    @property
    def step(self) -> Step:
        """The teacher's step."""
        ...

    @property
    def groups(self) -> Tensor:
        """The group of each sample, `(n,)`."""
        ...

    @property
    def output_variances(self) -> tuple[float, ...]:
        """Variance of each output over samples and elements; calibration errors are relative to it."""
        ...

    def batch(self, rows: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """What the stage read and wrote on the given samples, where it is to be computed with."""
        ...


@dataclass(frozen=True, slots=True)
class FeatureBudget:
    """How much room features may take.

    Attributes:
        memory_mb: in memory; a stage that needs more goes to disk.
        disk_mb: on disk, by default `$NAS_MAX_DISK` (such as 20G), else four fifths of what is free; a stage that needs more is recomputed by the teacher
            for every batch.
        folder: where temporary folders are made, by default below `$NAS_HOME`.
    """

    memory_mb: int = 4096
    disk_mb: float | None = None
    folder: Path | None = None

    @property
    def place(self) -> Path:
        """The folder, made if it is not there."""
        place = self.folder or nas_home() / "features"
        place.mkdir(parents=True, exist_ok=True)
        return place

    @property
    def disk_limit(self) -> float:
        """Bytes on disk at most."""
        if self.disk_mb is not None:
            return self.disk_mb * 1e6
        free = shutil.disk_usage(self.place).free
        return disk_bytes(os.environ[MAX_DISK], free) if MAX_DISK in os.environ else 0.8 * free


def disk_bytes(text: str, free: float) -> float:
    """Bytes that `"20G"` or `"50%"` (of what is free) means.

    Raises:
        InputError: another form.
    """
    match = re.fullmatch(AMOUNT, text.strip())
    try:
        number, unit = match.groups() if match else ("", "")
        return scaled(number, unit, free)
    except ValueError:
        raise InputError(f"room on disk must read NUMBER[k|M|G|T|%], such as 20G or 50% (of what is free), got '{text}'") from None


@dataclass(frozen=True)
class StageFeatures:
    """Inputs and outputs of one stage of the teacher, each `(n, ...)`, and the group of each sample `(n,)`.

    `device` is where batches go when the features lie elsewhere, in files.
    """

    step: Step
    reads: tuple[Tensor | Shards, ...]
    writes: tuple[Tensor | Shards, ...]
    groups: Tensor
    device: torch.device | None = None

    def batch(self, rows: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """What the stage read and wrote on the given samples, where it is to be computed with."""
        rows = moved(rows, self.writes[0].device)
        return tuple(self._rows(value, rows) for value in self.reads), tuple(self._rows(value, rows) for value in self.writes)

    def _rows(self, value: Tensor | Shards, rows: Tensor) -> Tensor:
        near = moved(rows, value.device)
        chosen = value.index_select(0, near) if isinstance(value, Tensor) else value[near]
        return chosen if self.device is None else moved(chosen, self.device)

    @cached_property
    def output_variances(self) -> tuple[float, ...]:
        """Variance of each output over samples and elements; calibration errors are relative to it."""
        return tuple(variance(value) for value in self.writes)


@dataclass(frozen=True)
class RecomputedFeatures:
    """Inputs and outputs of one stage, from a forward pass of the teacher for every batch: for a disk that is too small."""

    graph: StageGraph
    step: Step
    samples: Samples

    @property
    def groups(self) -> Tensor:
        """The group of each sample, `(n,)`."""
        return self.samples.groups

    def batch(self, rows: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """What the stage reads and writes on the given samples."""
        reads, writes = _keys(self.graph, [step.name for step in self.graph.steps].index(self.step.name))
        with torch.no_grad():
            values = _observed(self.graph, [self.step.name], self.samples.rows(rows).to(self.graph.device or self.samples.device))
        return tuple(values[key] for key in reads), tuple(values[key] for key in writes)

    @cached_property
    def output_variances(self) -> tuple[float, ...]:
        """Variance of each output, from one pass over all samples; 0 of a constant."""
        sums = torch.zeros(3, len(self.step.writes), dtype=torch.float64)
        for rows in torch.split(torch.arange(len(self.samples)), 32):
            for k, value in enumerate(self.batch(rows)[1]):
                wide = value.double()
                sums[:, k] += torch.stack([torch.tensor(wide.numel(), dtype=torch.float64), wide.sum().cpu(), wide.square().sum().cpu()])
        count, total, squares = sums
        found = (squares - total.square() / count) / (count - 1)
        return tuple(without_rounding(*of_one) for of_one in zip(found.tolist(), (total / count).tolist(), strict=True))


def split_features(features: Features, heldout: float = 0.2) -> tuple[Tensor, Tensor]:
    """Row indices for fitting and for the held-out error, at least one of each, disjoint by group (by sample when there is one group only).

    Raises:
        InputError: there is one sample only.
    """
    if len(features.groups) < 2:
        raise InputError("set 'fit' must have at least 2 samples, one to fit blocks to and one to judge them by, got 1")
    names = torch.unique(features.groups)
    if len(names) < 2:
        names, owner = torch.arange(len(features.groups)), torch.arange(len(features.groups))
    else:
        owner = features.groups
    n_out = min(max(1, round(heldout * len(names))), len(names) - 1)
    out = torch.isin(owner, names[-n_out:])
    return torch.nonzero(~out).flatten(), torch.nonzero(out).flatten()


def collect_features(
    graph: StageGraph,
    stages: Sequence[str],
    samples: Samples,
    progress: Progress,
    batch_size: int = 32,
    folder: Path | None = None,
    blocks: Mapping[str, nn.Module] | None = None,
) -> dict[str, StageFeatures]:
    """Runs the teacher, with other modules at the steps that `blocks` names, once over the samples and keeps what the named stages read and wrote.

    Values that several stages share are kept once: a stage's reads are another's writes. With a `folder` they lie in files there (see `Shards`).
    """
    kept: dict[_Key, Tensor | Shards] = {}
    device, start = graph.device or samples.device, 0
    with torch.no_grad():
        for batch in progress.track(list(samples.chunks(batch_size)), "teacher features"):
            for key, value in _observed(graph, stages, batch.to(device), blocks).items():
                if key not in kept:
                    name = f"{key[0]}-{len(kept)}"
                    kept[key] = Shards(folder, name) if folder else torch.empty((len(samples), *value.shape[1:]), dtype=value.dtype, device=value.device)
                _keep(kept[key], value, start)
            start += len(batch)
    kept = {key: value.close() if isinstance(value, Shards) else value for key, value in kept.items()}
    position = {step.name: index for index, step in enumerate(graph.steps)}
    features = {}
    for name in stages:
        reads, writes = _keys(graph, position[name])
        read, written = (tuple(kept[key] for key in keys) for keys in (reads, writes))
        features[name] = StageFeatures(graph[name], read, written, samples.groups, None if folder is None else device)
    return features


def _keep(store: Tensor | Shards, value: Tensor, start: int) -> None:
    if isinstance(store, Shards):
        store.append(value)
    else:
        store[start : start + len(value)] = value


def feature_bytes(graph: StageGraph, stages: Sequence[str], samples: Samples, *, on_disk: bool = False) -> dict[str, int]:
    """Bytes that the features of each stage take, in memory or on disk, from running one sample; a value that two stages share counts for both."""
    with torch.no_grad():
        observed = _observed(graph, stages, samples.rows(slice(0, 1)).to(graph.device or samples.device))
    position = {step.name: index for index, step in enumerate(graph.steps)}
    size = {key: half_bytes(value) if on_disk else value.nbytes for key, value in observed.items()}
    return {name: len(samples) * sum(size[key] for part in _keys(graph, position[name]) for key in part) for name in stages}


class FeatureBank:
    """The features of a teacher's stages, collected when first asked for: as many stages in one pass as the memory holds.

    Args:
        graph: the teacher.
        samples: what it runs on.
        stages: the stages that will be asked for, in that order.
        budget: memory for features; what one stage needs beyond it goes to files in a temporary folder, or is recomputed.
    """

    def __init__(self, graph: StageGraph, samples: Samples, stages: Sequence[str], budget: FeatureBudget | None = None) -> None:
        self._graph, self._samples, self._stages, self._budget = graph, samples, list(stages), budget or FeatureBudget()
        self._held: dict[str, Features] = {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def get(self, stage: str, progress: Progress) -> Features:
        """The features of one stage."""
        if stage not in self._held:
            self._held, self._folder = {}, None  # what was held goes first
            names = self._fitting(stage)
            self._held = dict(collect_features(self._graph, names, self._samples, progress)) if names else {stage: self._outside(stage, progress)}
        return self._held[stage]

    def _fitting(self, stage: str) -> list[str]:
        """This stage and the ones after it that memory holds beside it; none if it does not hold this one."""
        after = self._stages[self._stages.index(stage) :] if stage in self._stages else [stage]
        sizes = feature_bytes(self._graph, after, self._samples)
        names, total = list[str](), 0
        for name in after:
            total += sizes[name]
            if total > self._budget.memory_mb << 20:
                break
            names.append(name)
        return names

    def _outside(self, stage: str, progress: Progress) -> Features:
        """The features of a stage that does not fit in memory; says what they take before it starts."""
        need, limit = feature_bytes(self._graph, [stage], self._samples, on_disk=True)[stage], self._budget.disk_limit
        what = f"features of stage '{stage}' ({len(self._samples)} samples): {amount(need)}B on disk"
        if need > limit:
            progress.note(f"{what} are more than the {amount(limit)}B allowed; the teacher recomputes them for every batch")
            return RecomputedFeatures(self._graph, self._graph[stage], self._samples)
        self._folder = tempfile.TemporaryDirectory(prefix="features-", dir=self._budget.place)
        progress.note(f"{what}, in {self._folder.name}")
        return collect_features(self._graph, [stage], self._samples, progress, folder=Path(self._folder.name))[stage]


def _observed(graph: StageGraph, stages: Sequence[str], batch: Samples, blocks: Mapping[str, nn.Module] | None = None) -> dict[_Key, Tensor]:
    """Every value that the stages read or write on a batch."""
    position = {step.name: index for index, step in enumerate(graph.steps)}
    values: dict[_Key, Tensor] = {}

    def observe(step: Step, arguments: tuple[Any, ...], written: tuple[Any, ...]) -> None:
        if step.name in stages:
            reads, writes = _keys(graph, position[step.name])
            for key, value in zip((*reads, *writes), (*arguments, *written), strict=True):
                if not isinstance(value, Tensor):
                    raise ContractError(f"step '{step.name}': '{key[1]}' must be a tensor to be calibrated on, got {type(value).__name__}")
                values[key] = value.detach()

    graph.run(batch.inputs, blocks, observe=observe)
    return values


def _keys(graph: StageGraph, index: int) -> tuple[list[_Key], list[_Key]]:
    """What identifies each value that a step reads and writes: who wrote it, and its name."""
    step = graph.steps[index]
    return list(zip(graph.sources[index], step.reads, strict=True)), [(index, name) for name in step.writes]
