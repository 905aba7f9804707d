"""Samples a network is run on: calibration, measurement and verification sets, disjoint by picture (or whatever is independent)."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from nas.devices import moved
from nas.errors import InputError

Inputs = Mapping[str, Tensor]
"""Graph input name -> tensor `(B, ...)`."""


@dataclass(frozen=True)
class Samples:
    """Network inputs sample by sample: name -> tensor `(n, ...)`.

    `groups` `(n,)` int64 numbers the unit of independence (a photograph); samples of one group are correlated.
    `target` `(n, ...)` is what the task loss compares the output with, None where there is none.
    """

    inputs: Inputs
    groups: Tensor
    target: Tensor | None = None

    def __post_init__(self) -> None:
        n = len(self.groups)
        if n == 0 or not self.inputs:
            raise InputError("a sample set must hold at least one sample, got none")
        for name, value in (*self.inputs.items(), *((("target", self.target),) if self.target is not None else ())):
            if value.ndim == 0 or value.shape[0] != n:
                raise InputError(f"samples '{name}' must have {n} rows like the groups, got shape {tuple(value.shape)}")

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return next(iter(self.inputs.values())).device

    def rows(self, index: slice | Tensor) -> "Samples":
        """The chosen samples."""
        target = None if self.target is None else self.target[index]
        return Samples({name: value[index] for name, value in self.inputs.items()}, self.groups[index], target)

    def chunks(self, size: int) -> Iterator["Samples"]:
        """Consecutive parts of `size` samples; the last may be smaller."""
        for start in range(0, len(self), size):
            yield self.rows(slice(start, start + size))

    def to(self, device: torch.device | str) -> "Samples":
        """The same samples on another device."""
        target = None if self.target is None else moved(self.target, device)
        return Samples({name: moved(value, device) for name, value in self.inputs.items()}, self.groups, target)

    @classmethod
    def join(cls, batches: Iterable[Inputs], groups: Iterable[int] | None = None) -> "Samples":
        """One sample set from batches of inputs; without `groups` every sample is its own."""
        found = list(batches)
        if not found:
            raise InputError("calibration data yields no batch; it must yield at least one")
        for number, batch in enumerate(found):
            if batch.keys() != found[0].keys():
                raise InputError(f"batch {number} has inputs {sorted(batch)}, the first batch has {sorted(found[0])}; they must agree")
            for name, value in batch.items():
                if value.shape[1:] != found[0][name].shape[1:]:
                    raise InputError(f"batch {number}: '{name}' must have samples of shape {tuple(found[0][name].shape[1:])}, got {tuple(value.shape[1:])}")
        inputs = {name: torch.cat([batch[name] for batch in found]) for name in found[0]}
        n = len(next(iter(inputs.values())))
        return cls(inputs, torch.arange(n) if groups is None else torch.as_tensor(list(groups), dtype=torch.int64))

    @cached_property
    def fingerprint(self) -> str:
        """Hash of every tensor's name, type, shape and bytes."""
        parts = dict(self.inputs) | {"groups": self.groups} | ({} if self.target is None else {"target": self.target})
        return hash_tensors(parts)


@dataclass(frozen=True)
class Splits:
    """The three sets of one search: `fit` calibrates blocks, `measure` decides, `verify` gives the winner's verdict."""

    fit: Samples
    measure: Samples
    verify: Samples

    def __post_init__(self) -> None:
        sets = {"fit": self.fit, "measure": self.measure, "verify": self.verify}
        for title, samples in sets.items():
            for name, value in samples.inputs.items():
                _check_numbers(title, name, value, samples.groups)
        for first, second in (("fit", "measure"), ("fit", "verify"), ("measure", "verify")):
            common = set(sets[first].groups.tolist()) & set(sets[second].groups.tolist())
            if common:
                raise InputError(f"sets '{first}' and '{second}' share {len(common)} groups (such as {min(common)}); they must be disjoint")


def _check_numbers(title: str, name: str, value: Tensor, groups: Tensor) -> None:
    """Raises for NaN; infinite values may be meant, as in masks."""
    if value.is_floating_point() and not value.is_meta and (missing := value.isnan()).any():
        bad = missing.flatten(1).any(1) if value.ndim > 1 else missing
        first = int(groups[bad.cpu()][0])
        raise InputError(f"set '{title}': input '{name}' has NaN in {int(bad.sum())} of {len(value)} samples, such as that of group {first}; leave them out")


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) over names, types, shapes and bytes, in name order."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}:{value.dtype}:{tuple(value.shape)};".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return digest.hexdigest()
