"""Sample sets from any iterable of batches: a DataLoader, a list of tensors, a generator of dicts."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nas import arguments
from nas.data import Samples, Splits
from nas.errors import InputError


def collect(batches: Iterable[Any], inputs: Sequence[str] | None = None, target: str | None = None, limit: int | None = None) -> Samples:
    """The samples of all batches, each its own group.

    Args:
        batches: of tensors, of tuples whose entries `inputs` names in order, or of mappings.
        inputs: names of what the model is called with; entries of a tuple may be skipped with "". By default all that the first batch holds if it is a
            mapping, else one input "x".
        target: the name among them (or key of a mapping) that is the target and no input.
        limit: samples at most.

    Raises:
        InputError: no batch, or one of another kind, other names or other shapes than the first.
    """
    if not isinstance(batches, Iterable):
        raise InputError(f"batches must be a list, a DataLoader or another source of batches, got {arguments.shown(batches)}")
    inputs = None if inputs is None else _names_of(inputs)
    target = None if target is None else arguments.text("target", target, "label")
    limit = None if limit is None else arguments.whole("limit", limit, 1)
    found: list[dict[str, Tensor]] = []
    count = 0
    for number, batch in enumerate(batches):
        if limit is not None and count >= limit:
            break
        if inputs is None:
            inputs = tuple(map(str, batch)) if isinstance(batch, Mapping) else ("x",)
        found.append(_named(batch, (*inputs, target) if target and target not in inputs else tuple(inputs), number))
        count += len(next(iter(found[-1].values())))
    joined = Samples.join(found)
    values = {name: value[:limit] for name, value in joined.inputs.items()}
    targets = values.pop(target, None) if target else None
    return Samples(values, torch.arange(len(next(iter(values.values())))), targets)


def _names_of(inputs: object) -> tuple[str, ...]:
    names = arguments.several("inputs", inputs, "['x', 'mask']")
    if not all(isinstance(name, str) for name in names) or not any(names):
        raise InputError(f"inputs must be names such as ['x', 'mask'], got {arguments.shown(inputs)}")
    return names


def split(samples: Samples, fit: float = 0.5, measure: float = 0.25, seed: int = 0) -> Splits:
    """The samples as three sets, disjoint by group: shares for calibration and measurement, the rest verifies.

    Raises:
        InputError: shares that leave a set empty.
    """
    arguments.instance("samples", samples, Samples, "nas.batches.collect(batches) makes them")
    fit, measure, seed = arguments.number("fit", fit), arguments.number("measure", measure), arguments.whole("seed", seed)
    groups = torch.unique(samples.groups)
    order = groups[torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed))]
    ends = [math.floor(fit * len(order)), math.floor((fit + measure) * len(order))]
    parts = [order[: ends[0]], order[ends[0] : ends[1]], order[ends[1] :]]
    if fit <= 0 or measure <= 0 or not all(len(part) for part in parts):
        raise InputError(f"shares fit {fit:g} and measure {measure:g} of {len(groups)} groups must leave every set at least one; the rest verifies")
    first, second, third = (samples.rows(torch.isin(samples.groups, part)) for part in parts)
    return Splits(first, second, third)


def _named(batch: Any, names: Sequence[str], number: int) -> dict[str, Tensor]:
    if isinstance(batch, Tensor):
        batch = (batch,)
    if isinstance(batch, Mapping):
        missing = [name for name in names if name and name not in batch]
        if missing:
            raise InputError(f"batch {number} has no '{missing[0]}'; it has: {', '.join(map(str, batch))}")
        pairs = {name: batch[name] for name in names if name}
    elif isinstance(batch, Sequence) and not isinstance(batch, str):
        if len(batch) < len(names):
            raise InputError(f"batch {number} must have {len(names)} entries ({', '.join(names)}), got {len(batch)}")
        pairs = {name: value for name, value in zip(names, batch, strict=False) if name}
    else:
        raise InputError(f"batch {number} must be a tensor, a tuple or a mapping of tensors, got {type(batch).__name__}")
    for name, value in pairs.items():
        if not isinstance(value, Tensor) or value.ndim == 0:
            raise InputError(f"batch {number}: '{name}' must be a tensor with a row for each sample, got {type(value).__name__}")
    return pairs
