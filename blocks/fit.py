"""The fit of one surrogate block to what the teacher's block wrote (Eq. 8 of [TOC-SR]): batches without waiting, looked at every so many steps."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nas.blocks.features import Features, split_features
from nas.blocks.ridge import solve_ends
from nas.devices import repeatable
from nas.graph import call_step


@dataclass(frozen=True, slots=True)
class CalibrationSettings:
    """How long and how fast a block is fitted; part of its key.

    Adam at `lr`, cosine decay over `max_steps`; every `check_every` steps the held-out error is taken, and the fit ends once it
    has not fallen by `tolerance` (relative) for `patience` checks. The best state seen is kept, and with `finish` the linear maps that its
    outputs end in are solved in closed form (`nas.blocks.ridge`).
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
    version: int = 1


class Diverged(Exception):
    """The fit met a non-finite loss; the message says where."""


class Fit:
    """A block on its way: its own weights, the optimizer's, and the best so far.

    Attributes:
        errors: the best held-out error so far, `(n_outputs,)`.
        seen: the held-out error at the last look.
    """

    def __init__(self, block: nn.Module, features: Features, settings: CalibrationSettings) -> None:
        self.block, self._features, self._settings = block, features, settings
        self._rows, self._heldout = split_features(features, settings.heldout)
        self._order = torch.Generator().manual_seed(settings.seed)
        self._parameters = [p for p in block.parameters() if p.requires_grad]
        self._optimizer = torch.optim.Adam(self._parameters, lr=settings.lr) if self._parameters else None
        self._kept: dict[str, Tensor] | None = None
        self._stale = 0
        self.steps = 0
        self.errors = self.seen = self._look()

    @property
    def done(self) -> bool:
        """Whether further steps are not worth it."""
        return self._optimizer is None or self.steps >= self._settings.max_steps or self._stale >= self._settings.patience

    def advance(self) -> None:
        """Takes the steps up to the next look at the held-out error.

        Raises:
            Diverged: a loss was not finite.
        """
        losses, first = self._step_on(), self.steps - self._settings.check_every
        if not torch.isfinite(losses).all():
            bad = int((~torch.isfinite(losses)).nonzero()[0])
            raise Diverged(f"loss became {losses[bad].item()} at step {first + bad}, lr {self._lr(first + bad):.1e}")
        errors = self.seen = self._look()
        self._stale = 0 if errors.mean() < self.errors.mean() * (1 - self._settings.tolerance) else self._stale + 1
        if errors.mean() < self.errors.mean():
            self.errors, self._kept = errors, {name: value.detach().clone() for name, value in self.block.state_dict().items()}

    def end(self) -> None:
        """The best state seen, its ends solved.

        Raises:
            Diverged: its held-out error is not finite.
        """
        if self._kept is not None:
            self.block.load_state_dict(self._kept)
        finite = bool(torch.isfinite(self.errors).all())
        if self._settings.finish and finite and solve_ends(self.block, self._features, self._rows, self._heldout, lambda: self._look().mean()):
            self.errors = self._look()
        if not torch.isfinite(self.errors).all():
            raise Diverged(f"held-out error is {self.errors.tolist()} after {self.steps} steps")

    def _step_on(self) -> Tensor:
        """So many steps, whose losses it returns; nothing in here waits for the device."""
        assert self._optimizer is not None
        settings, losses = self._settings, []
        for rows in self._rows[torch.randint(len(self._rows), (settings.check_every, settings.batch_size), generator=self._order)]:
            self._optimizer.param_groups[0]["lr"] = self._lr(self.steps)
            loss = relative_errors(self.block, self._features, rows).mean()
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(self._parameters, 1.0)
            self._optimizer.step()
            self.steps += 1
            losses.append(loss.detach())
        return torch.stack(losses)

    def _lr(self, step: int) -> float:
        return self._settings.lr * (0.05 + 0.95 * (1 + math.cos(math.pi * step / self._settings.max_steps)) / 2)

    def _look(self) -> Tensor:
        return held_out_errors(self.block, self._features, self._heldout)


def calibrate_block(
    block: nn.Module, features: Features, settings: CalibrationSettings, watch: Callable[[tuple[int, float]], object] | None = None
) -> tuple[dict[str, float], int]:
    """Fits the block in place; returns its held-out error (MSE / variance) by output name and the steps taken.

    `watch` is told (steps, held-out error) at every look, and last what the finished block has.

    Raises:
        Diverged: a loss or the held-out error is not finite.
    """
    device = next((p.device for p in block.parameters()), torch.device("cpu"))
    with repeatable(device):
        fit = Fit(block, features, settings)
        looks = [(0, fit.seen)]
        while not fit.done:
            fit.advance()
            looks.append((fit.steps, fit.seen))
        fit.end()
    if watch is not None:
        for steps, errors in (*looks, (fit.steps, fit.errors)):
            watch((steps, float(errors.mean())))
    return dict(zip(features.step.writes, fit.errors.tolist(), strict=True)), fit.steps


def relative_errors(block: nn.Module, features: Features, rows: Tensor) -> Tensor:
    """MSE / variance of each output on the given samples, `(n_outputs,)` (Eq. 8, each output scaled by its variance)."""
    reads, targets = features.batch(rows)
    written = call_step(features.step, block, reads)
    errors = []
    for value, target, variance in zip(written, targets, features.output_variances, strict=True):
        errors.append((value - target).square().mean() / (variance or 1.0))
    return torch.stack(errors)


def held_out_errors(block: nn.Module, features: Features, rows: Tensor, batch_size: int = 64) -> Tensor:
    """The same without gradients, over any number of samples."""
    with torch.no_grad():
        parts = [relative_errors(block, features, part) * len(part) for part in torch.split(rows, batch_size)]
    return torch.stack(parts).sum(0) / len(rows)
