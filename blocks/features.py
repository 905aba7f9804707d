"""What each stage of the teacher reads and writes on the `fit` samples: the data of feature-wise distillation (Eq. 7 of [TOC-SR])."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nas.data import Samples
from nas.errors import ContractError
from nas.graph import StageGraph, Step
from nas.progress import Progress

_Key = tuple[int, str]


@dataclass(frozen=True)
class StageFeatures:
    """Inputs and outputs of one stage of the teacher, each `(n, ...)`, and the group of each sample `(n,)`."""

    step: Step
    reads: tuple[Tensor, ...]
    writes: tuple[Tensor, ...]
    groups: Tensor

    @property
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


def collect_features(graph: StageGraph, stages: Sequence[str], samples: Samples, progress: Progress, batch_size: int = 32) -> dict[str, StageFeatures]:
    """Runs the teacher once over the samples and keeps what the named stages read and wrote.

    Values that several stages share are kept once: a stage's reads are another's writes.
    """
    position = {step.name: index for index, step in enumerate(graph.steps)}
    kept: dict[_Key, list[Tensor]] = {}
    batch_values: dict[_Key, Tensor] = {}

    def observe(step: Step, arguments: tuple[Any, ...], written: tuple[Any, ...]) -> None:
        if step.name in stages:
            reads, writes = _keys(graph, position[step.name])
            for key, value in zip((*reads, *writes), (*arguments, *written), strict=True):
                if not isinstance(value, Tensor):
                    raise ContractError(f"step '{step.name}': '{key[1]}' must be a tensor to be calibrated on, got {type(value).__name__}")
                batch_values[key] = value.detach()

    with torch.no_grad():
        for batch in progress.track(list(samples.chunks(batch_size)), "teacher features"):
            graph.run(batch.inputs, observe=observe)
            for key, value in batch_values.items():
                kept.setdefault(key, []).append(value.clone())
            batch_values.clear()
    joined = {key: torch.cat(values) for key, values in kept.items()}
    features = {}
    for name in stages:
        reads, writes = _keys(graph, position[name])
        features[name] = StageFeatures(graph[name], tuple(joined[k] for k in reads), tuple(joined[k] for k in writes), samples.groups)
    return features


def _keys(graph: StageGraph, index: int) -> tuple[list[_Key], list[_Key]]:
    """What identifies each value that a step reads and writes: who wrote it, and its name."""
    step = graph.steps[index]
    return list(zip(graph.sources[index], step.reads, strict=True)), [(index, name) for name in step.writes]
