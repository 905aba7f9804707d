"""How a divergence is called, and what it must hold before anything is computed with it: zero for the teacher itself."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nas.arguments import shown
from nas.data import Samples
from nas.errors import ContractError, InputError
from nas.graph import StageGraph
from nas.user_code import user_code

Divergence = Callable[..., Tensor]
"""(teacher output, candidate output), each `(B, ...)` -> per-sample values `(B,)`; one that takes three is also given the samples' target."""

_PROBED = 4
"""Samples that the teacher is run on to look at a divergence."""
_NEGLIGIBLE = 1e-4
"""Of what the divergence is between two samples' outputs: what rounding may leave at the teacher itself."""


_OF_CLASSES: set[Divergence] = set()


def of_classes(divergence: Divergence) -> Divergence:
    """Decorator of a divergence that reads the outputs' last dimension as scores of classes: outputs that are none are refused."""
    _OF_CLASSES.add(divergence)
    return divergence


def _is_of_classes(divergence: Divergence) -> bool:
    """Whether it, or the function that it is a partial call of, was so decorated; what cannot be hashed was not."""
    called = getattr(divergence, "func", divergence)
    return any(called is known for known in _OF_CLASSES)


def described(divergence: Divergence) -> str:
    """What a legend says that it is of."""
    reads = ", read as scores of classes along their last dimension" if _is_of_classes(divergence) else ""
    return f"`{name_of(divergence)}` of the outputs{reads}"


def divergence_arguments(divergence: Divergence, samples: Samples) -> int:
    """How many of (teacher output, candidate output, target) it takes.

    Raises:
        InputError: it is no function, takes another number, or the target of samples that have none.
    """
    if not callable(divergence):
        raise InputError(
            f"divergence must be a function (teacher output, candidate output) -> value a sample, got {shown(divergence)}; nas.evaluators.divergences has some"
        )
    try:
        parameters = inspect.signature(divergence).parameters.values()
    except ValueError:  # a function of C
        raise InputError(f"divergence '{name_of(divergence)}' does not say what it takes; give a function (teacher, candidate) that calls it") from None
    required = [p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(required) not in (2, 3):
        raise InputError(f"divergence '{name_of(divergence)}' must take the teacher's output, the candidate's and perhaps the target, takes {len(required)}")
    if len(required) == 3 and samples.target is None:
        raise InputError(f"divergence '{name_of(divergence)}' takes a target, and the samples have none; give one with target=")
    return len(required)


def name_of(divergence: Divergence) -> str:
    """What a message calls it."""
    return str(getattr(divergence, "__name__", divergence))


def per_sample(divergence: Divergence, outputs: tuple[Any, ...]) -> Tensor:
    """Its values `(B,)` for (teacher output, candidate output[, target]).

    Raises:
        ContractError: it gives something else than one value a sample.
        UserCodeError: whatever it raises.
    """
    with torch.no_grad(), user_code(f"divergence '{name_of(divergence)}'"):
        values = divergence(*outputs)
    n = len(outputs[1])
    if not isinstance(values, Tensor) or values.shape != (n,):
        got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ContractError(f"divergence '{name_of(divergence)}' must give one value a sample, ({n},), got {got}")
    return values


def check_at_teacher(divergence: Divergence, graph: StageGraph, samples: Samples) -> None:
    """Raises unless the divergence of the teacher from itself is finite and zero, but for rounding; a few samples are run."""
    few = samples.rows(slice(0, _PROBED)).to(graph.device or samples.device)
    with torch.no_grad():
        output = graph.run(few.inputs)
    if not torch.isfinite(output).all():
        raise InputError("the teacher's output on the measure set has NaN or infinite values; look at the model and its samples")
    if _is_of_classes(divergence):
        _check_classes(divergence, output, few.target)
    more = (few.target,) if divergence_arguments(divergence, samples) == 3 else ()
    itself = per_sample(divergence, (output, output, *more)).double()
    if not torch.isfinite(itself).all():
        raise ContractError(f"divergence '{name_of(divergence)}' must be finite, it is {itself.tolist()} for the teacher's own output")
    others = per_sample(divergence, (output, output.roll(1, 0), *more)).double()
    largest, unit = float(itself.abs().max()), float(others[torch.isfinite(others)].abs().sum())
    if largest > max(_NEGLIGIBLE * unit, 1e-6):
        raise ContractError(
            f"divergence '{name_of(divergence)}' must be 0 for the teacher itself, it is {largest:.3g}; subtract what it is for two equal outputs"
        )


def _check_classes(divergence: Divergence, output: Tensor, target: Tensor | None) -> None:
    """Raises if the output can be no scores of classes, or the target says that it is a regression's."""
    if output.ndim < 2 or output.shape[-1] < 2:
        raise InputError(
            f"divergence '{name_of(divergence)}' compares classes along the last dimension and needs at least 2, the output is {tuple(output.shape)}; "
            "mean_squared_error compares numbers"
        )
    if target is None or not target.is_floating_point() or target.shape != output.shape:
        return
    if bool((target < 0).any()) or not torch.allclose(target.sum(-1), torch.ones_like(target.sum(-1)), atol=1e-3):
        raise InputError(
            f"divergence '{name_of(divergence)}' reads the output {tuple(output.shape)} as scores of {output.shape[-1]} classes, but the target holds as many "
            "real numbers that are no probabilities: that is a regression; mean_squared_error compares numbers"
        )
