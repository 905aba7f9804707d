"""What each stage of the teacher reads and writes on the `fit` samples: the data of feature-wise distillation (Eq. 7 of [TOC-SR])."""

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nas.data import Samples
from nas.errors import ContractError
from nas.graph import StageGraph, Step
from nas.progress import Progress

_Key = tuple[int, str]


@dataclass(frozen=True)
class StageFeatures:
    """Inputs and outputs of one stage of the teacher, each `(n, ...)`, and the group of each sample `(n,)`.

    `device` is where batches go when the features lie elsewhere, in files.
    """

    step: Step
    reads: tuple[Tensor, ...]
    writes: tuple[Tensor, ...]
    groups: Tensor
    device: torch.device | None = None

    def batch(self, rows: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """What the stage read and wrote on the given samples, where it is to be computed with."""
        return tuple(self._placed(value[rows]) for value in self.reads), tuple(self._placed(value[rows]) for value in self.writes)

    def _placed(self, value: Tensor) -> Tensor:
        if self.device is None or self.device == value.device:
            return value
        return value.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else value.to(self.device)

    @cached_property
    def output_variances(self) -> tuple[float, ...]:
        """Variance of each output over samples and elements; calibration errors are relative to it."""
        return tuple(float(value.float().var()) for value in self.writes)

    def split(self, heldout: float = 0.2) -> tuple[Tensor, Tensor]:
        """Row indices for fitting and for the held-out error, disjoint by group (by sample when there is one group only)."""
        names = torch.unique(self.groups)
        if len(names) < 2:
            names, owner = torch.arange(len(self.groups)), torch.arange(len(self.groups))
        else:
            owner = self.groups
        n_out = max(1, round(heldout * len(names)))
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

    Values that several stages share are kept once: a stage's reads are another's writes. With a `folder` they lie in memory-mapped files there.
    """
    kept: dict[_Key, Tensor] = {}
    start = 0
    with torch.no_grad():
        for batch in progress.track(list(samples.chunks(batch_size)), "teacher features"):
            for key, value in _observed(graph, stages, batch, blocks).items():
                if key not in kept:
                    kept[key] = _allocate((len(samples), *value.shape[1:]), value, folder, f"{key[0]}-{len(kept)}")
                kept[key][start : start + len(value)] = value
            start += len(batch)
    device = next(iter(samples.inputs.values())).device if folder is not None else None
    position = {step.name: index for index, step in enumerate(graph.steps)}
    features = {}
    for name in stages:
        reads, writes = _keys(graph, position[name])
        features[name] = StageFeatures(graph[name], tuple(kept[k] for k in reads), tuple(kept[k] for k in writes), samples.groups, device)
    return features


def feature_bytes(graph: StageGraph, stages: Sequence[str], samples: Samples) -> dict[str, int]:
    """Bytes that the features of each stage take, from running one sample; a value that two stages share counts for both."""
    with torch.no_grad():
        observed = _observed(graph, stages, samples.rows(slice(0, 1)))
    position = {step.name: index for index, step in enumerate(graph.steps)}
    return {name: len(samples) * sum(observed[key].nbytes for part in _keys(graph, position[name]) for key in part) for name in stages}


class FeatureBank:
    """The features of a teacher's stages, collected when first asked for: as many stages in one pass as the memory holds.

    Args:
        graph: the teacher.
        samples: what it runs on.
        stages: the stages that will be asked for, in that order.
        budget_mb: memory for features; what one stage needs beyond it goes to a temporary memory-mapped file.
    """

    def __init__(self, graph: StageGraph, samples: Samples, stages: Sequence[str], budget_mb: int = 4096) -> None:
        self._graph, self._samples, self._stages, self._budget = graph, samples, list(stages), budget_mb << 20
        self._held: dict[str, StageFeatures] = {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def get(self, stage: str, progress: Progress) -> StageFeatures:
        """The features of one stage."""
        if stage not in self._held:
            names, fits = self._next(stage)
            self._held = {}
            self._folder = None if fits else tempfile.TemporaryDirectory(prefix="nas-features-")
            folder = Path(self._folder.name) if self._folder else None
            self._held = collect_features(self._graph, names, self._samples, progress, folder=folder)
        return self._held[stage]

    def _next(self, stage: str) -> tuple[list[str], bool]:
        """This stage and the ones after it that fit beside it, and whether it fits itself."""
        after = self._stages[self._stages.index(stage) :] if stage in self._stages else [stage]
        sizes = feature_bytes(self._graph, after, self._samples)
        names, total = [stage], sizes[stage]
        for name in after[1:]:
            total += sizes[name]
            if total > self._budget:
                break
            names.append(name)
        return names, sizes[stage] <= self._budget


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


def _allocate(shape: tuple[int, ...], like: Tensor, folder: Path | None, name: str) -> Tensor:
    if folder is None:
        return torch.empty(shape, dtype=like.dtype, device=like.device)
    size = math.prod(shape)
    return torch.from_file(str(folder / name), shared=True, size=size, dtype=like.dtype).view(shape)


def _keys(graph: StageGraph, index: int) -> tuple[list[_Key], list[_Key]]:
    """What identifies each value that a step reads and writes: who wrote it, and its name."""
    step = graph.steps[index]
    return list(zip(graph.sources[index], step.reads, strict=True)), [(index, name) for name in step.writes]
