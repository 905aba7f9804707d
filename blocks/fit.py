"""Surrogate blocks of one stage fitted to what the teacher's block wrote (Eq. 8 of [TOC-SR]), side by side on the same batches.

Between two looks at the held-out error nothing waits for the device. Blocks fitted together come out as they would alone, bit for bit.
"""

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nas.arguments import number, whole
from nas.blocks.features import Features, split_features
from nas.blocks.flat import FlatAdam, FlatParameters
from nas.blocks.ridge import solve_ends
from nas.devices import repeatable
from nas.errors import InputError
from nas.graph import Step, call_step
from nas.graphed import Graphed

WATCHED = 48
"""Held-out samples that are looked at during a fit, at least, if there are so many; the error that counts is over all of them."""

IN_A_ROW = 1 << 26
"""Bytes of batches that one block takes in a row before the next block takes the same, so that its weights stay in the processor's cache."""

Batch = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]
"""What the stage read and wrote on some samples."""


@dataclass(frozen=True, slots=True)
class CalibrationSettings:
    """How long and how fast a block is fitted; part of its key.

    Adam at `lr`, cosine decay over `max_steps`; every `check_every` steps and after the last the held-out error is taken, and the fit ends once it
    has not fallen by `tolerance` (relative) for `patience` checks. The best state seen is kept, and with `finish` the linear maps that its
    outputs end in are solved in closed form (`nas.blocks.ridge`).

    Raises:
        InputError: a value of another kind, or out of its range.
    """

    max_steps: int = 300
    batch_size: int = 32
    lr: float = 2e-3
    check_every: int = 25
    patience: int = 3
    tolerance: float = 0.01
    heldout: float = 0.2
    seed: int = 0
    finish: bool = True
    version: int = 4

    def __post_init__(self) -> None:
        for name, least in (("max_steps", 0), ("batch_size", 1), ("check_every", 1), ("patience", 1), ("seed", 0)):
            whole(f"calibration's {name}", getattr(self, name), least)
        for name in ("lr", "tolerance"):
            number(f"calibration's {name}", getattr(self, name), 0.0)
        if not 0 < number("calibration's heldout", self.heldout) < 1:
            raise InputError(f"calibration's heldout must be a share between 0 and 1, got {self.heldout}")


class Diverged(Exception):
    """The fit met a gradient that is not finite; the message says where."""


class Fit:
    """A block on its way: its own weights, the optimizer's, and the best so far.

    Attributes:
        steps: taken so far.
        seconds: spent on this block alone.
        errors: of the best state, MSE / variance by output; over the watched samples until `end`, then over all held-out ones.
        curve: (steps, mean of `errors`) at every look, and last what the finished block has.
        failure: why it was given up; empty if it was not.
    """

    def __init__(self, block: nn.Module, step: Step, variances: Sequence[float], settings: CalibrationSettings) -> None:
        self.block, self._step, self._variances, self._settings = block, step, variances, settings
        self._flat = FlatParameters([p for p in block.parameters() if p.requires_grad])
        self._adam = FlatAdam(self._flat, most=1.0)
        self._descend = Graphed(partial(_descend, block, step, variances, self._flat, self._adam))
        self._norms: list[Tensor] = []
        self._kept: dict[str, Tensor] | None = None
        self._stale = 0
        self.steps, self.seconds, self.failure = 0, 0.0, ""
        self.curve: list[tuple[int, float]] = []
        self.errors = torch.full((len(variances),), math.inf)

    @property
    def done(self) -> bool:
        """Whether further steps are not worth it."""
        return bool(self.failure) or not self._flat.vectors or self.left <= 0 or self._stale >= self._settings.patience

    @property
    def left(self) -> int:
        """Steps that it may still take."""
        return self._settings.max_steps - self.steps

    def advance(self, batch: Batch) -> None:
        """One step; nothing in here waits for the device."""
        started = time.perf_counter()
        self._norms.append(self._descend(self._adam.rate(self._lr(self.steps)), *batch[0], *batch[1]))
        self.steps += 1
        self.seconds += time.perf_counter() - started

    def judge(self, errors: Tensor) -> None:
        """Takes the held-out errors of the present state; keeps it if it is the best."""
        norms, self._norms = self._norms, []
        finite = torch.isfinite(torch.stack(norms)) if norms else torch.ones(1, dtype=torch.bool)
        if not finite.all():
            bad = int((~finite).nonzero()[0])
            step = self.steps - len(norms) + bad
            self.failure = f"the loss's gradient became {norms[bad].item()} at step {step}, lr {self._lr(step):.1e}"
            return
        self.curve.append((self.steps, float(errors.mean())))
        if norms:
            self._stale = 0 if errors.mean() < self.errors.mean() * (1 - self._settings.tolerance) else self._stale + 1
        if not norms or errors.mean() < self.errors.mean():
            self.errors, self._kept = errors, {name: value.detach().clone() for name, value in self.block.state_dict().items()}

    def end(self, features: Features, fit: Tensor, heldout: Tensor) -> None:
        """The best state seen, its ends solved, its error over all held-out samples."""
        started = time.perf_counter()
        self._flat.release()
        if self._kept is not None and self.steps:
            self.block.load_state_dict(self._kept)
        self.errors = held_out_errors(self.block, features, heldout)
        if self._settings.finish and torch.isfinite(self.errors).all():
            self.errors = solve_ends(self.block, features, fit, heldout, self.errors, lambda: held_out_errors(self.block, features, heldout))[1]
        if not torch.isfinite(self.errors).all():
            self.failure = f"held-out error is {self.errors.tolist()} after {self.steps} steps"
        self.curve.append((self.steps, float(self.errors.mean())))
        self.seconds += time.perf_counter() - started

    def state(self) -> dict[str, Any]:
        """Everything that further steps depend on, between two of them after a look."""
        return {
            "steps": self.steps, "curve": self.curve, "stale": self._stale, "seconds": self.seconds, "errors": self.errors, "kept": self._kept,
            "block": dict(self.block.state_dict()), "adam": self._adam.state(),
        }  # fmt: skip

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from where `state` was taken.

        Raises:
            Exception: it is the state of another block; nothing says which part of it fails first.
        """
        self.block.load_state_dict(state["block"])
        self._adam.restore(state["adam"])
        own = self.block.state_dict()
        self._kept = None if state["kept"] is None else {name: value.to(own[name].device) for name, value in state["kept"].items()}
        self.steps, self._stale, self.seconds = int(state["steps"]), int(state["stale"]), float(state["seconds"])
        self.curve = [(int(steps), float(error)) for steps, error in state["curve"]]
        self.errors = state["errors"].to(next(iter(own.values())).device)

    def _lr(self, step: int) -> float:
        return self._settings.lr * (0.05 + 0.95 * (1 + math.cos(math.pi * step / self._settings.max_steps)) / 2)


def fit_together(fits: Sequence[Fit], features: Features, settings: CalibrationSettings) -> Iterator[tuple[Fit, bool]]:
    """Fits the blocks of one stage to the end; after each look yields every block looked at and whether it has ended.

    All are fitted on the same batches, each read once: what step `k` sees follows from the seed and `k` alone.
    """
    fit, heldout = split_features(features, settings.heldout)
    watched = heldout[:: max(1, len(heldout) // WATCHED)]
    fresh = [one for one in fits if one.steps == 0]
    for one, errors in zip(fresh, errors_of([one.block for one in fresh], features, watched), strict=True):
        one.judge(errors)
    going = list(fits)
    while going:
        for one in [one for one in going if one.done]:
            going.remove(one)
            if not one.failure:
                one.end(features, fit, heldout)
            yield one, True
        at = min((one.steps for one in going), default=0)
        now = [one for one in going if one.steps == at]
        count = min([settings.check_every, *(one.left for one in now)])
        for batches in _in_a_row(features, fit[_drawn(len(fit), at, count, settings)] if now else ()):
            for one in now:
                for batch in batches:
                    one.advance(batch)
        for one, errors in zip(now, errors_of([one.block for one in now], features, watched), strict=True):
            one.judge(errors)
        yield from [(one, False) for one in now if not one.done]


def _drawn(n: int, at: int, count: int, settings: CalibrationSettings) -> Tensor:
    """Which of `n` samples the `count` steps from `at` on see, `(count, batch_size)`."""
    random = torch.Generator().manual_seed(settings.seed)
    return torch.randint(n, (at + count, settings.batch_size), generator=random)[at:]


def _in_a_row(features: Features, drawn: Iterable[Tensor]) -> Iterator[list[Batch]]:
    """The batches of the drawn samples, so many at a time as `IN_A_ROW` allows, but one at least."""
    held: list[Batch] = []
    for rows in drawn:
        held.append(features.batch(rows))
        if (len(held) + 1) * sum(value.nbytes for part in held[0] for value in part) > IN_A_ROW:
            yield held
            held = []
    if held:
        yield held


def calibrate_block(block: nn.Module, features: Features, settings: CalibrationSettings) -> tuple[dict[str, float], int]:
    """Fits one block in place; returns its held-out error (MSE / variance) by output name and the steps taken.

    Raises:
        Diverged: a gradient or the held-out error is not finite.
    """
    fit = Fit(block, features.step, features.output_variances, settings)
    with repeatable(next((p.device for p in block.parameters()), "cpu")):
        for _ in fit_together([fit], features, settings):
            pass
    if fit.failure:
        raise Diverged(fit.failure)
    return dict(zip(features.step.writes, fit.errors.tolist(), strict=True)), fit.steps


def _descend(block: nn.Module, step: Step, variances: Sequence[float], flat: FlatParameters, adam: FlatAdam, lr: Tensor, *batch: Tensor) -> Tensor:
    """One step of Adam on a batch, what the stage read and then what it wrote; the gradients' norm before it, `()`."""
    flat.zero_grad()
    differentiate(block, step, variances, (batch[: len(step.reads)], batch[len(step.reads) :]))
    return adam.step(lr)


def differentiate(block: nn.Module, step: Step, variances: Sequence[float], batch: Batch) -> None:
    """Adds to the parameters' gradients those of the mean of `relative_errors`, whose value is not computed."""
    reads, targets = batch
    outputs, gradients = [], []
    for value, target, variance in zip(call_step(step, block, reads), targets, variances, strict=True):
        if value.requires_grad:
            outputs.append(value)
            gradients.append((value.detach() - target).mul_(2 / (target.numel() * (variance or 1.0) * len(targets))))
    torch.autograd.backward(outputs, gradients)


def relative_errors(block: nn.Module, step: Step, variances: Sequence[float], batch: Batch) -> Tensor:
    """MSE / variance of each output on a batch, `(n_outputs,)` (Eq. 8, each output scaled by its variance)."""
    reads, targets = batch
    written = call_step(step, block, reads)
    pairs = zip(written, targets, variances, strict=True)
    return torch.stack([nn.functional.mse_loss(value, target) / (variance or 1.0) for value, target, variance in pairs])


def errors_of(blocks: Sequence[nn.Module], features: Features, rows: Tensor, batch_size: int = 64) -> list[Tensor]:
    """The same for several blocks without gradients, over any number of samples, each read once."""
    if not blocks:
        return []
    sums = [torch.zeros(())] * len(blocks)
    with torch.no_grad():
        for part in torch.split(rows, batch_size):
            batch = features.batch(part)
            errors = [relative_errors(block, features.step, features.output_variances, batch) * (len(part) / len(rows)) for block in blocks]
            sums = [total.to(error) + error for total, error in zip(sums, errors, strict=True)]
    return sums


def held_out_errors(block: nn.Module, features: Features, rows: Tensor) -> Tensor:
    """MSE / variance of each output on the given samples, `(n_outputs,)`."""
    return errors_of([block], features, rows)[0]
