"""A training loop that goes on exactly where it was stopped: AdamW, averaged weights, a rate that falls at the end."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nas.checkpoint import load_checkpoint, save_checkpoint
from nas.errors import InputError
from nas.progress import Progress

LossOf = Callable[[torch.Generator], Tensor]
"""Draws a batch with the generator and returns its loss."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how fast to train. `batch` is for the loss to use; `decay` is the share of steps over which the rate falls."""

    steps: int
    batch: int = 16
    rate: float = 1e-3
    warmup: int = 100
    decay: float = 0.4
    average: float = 0.999
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1 or self.rate <= 0 or not 0 < self.decay <= 1:
            raise InputError(f"training needs steps, batch and rate above 0 and decay in (0, 1], got {asdict(self)}")

    def rate_at(self, step: int) -> float:
        """Warm-up, flat, then a linear descent to 1 %."""
        left = (self.steps - step) / (self.decay * self.steps)
        return self.rate * min(1.0, (step + 1) / self.warmup, max(0.01, left))


def train(module: nn.Module, loss_of: LossOf, schedule: Schedule, checkpoint: Path, progress: Progress, *, key: str = "", save_s: float = 60.0) -> float:
    """Trains all parameters that require a gradient and leaves their averages in the module; the running loss at the end.

    Random numbers are a function of seed and step, so that a run that was killed goes on exactly.

    Args:
        module: what is trained.
        loss_of: the loss of a batch.
        schedule: how long and how fast.
        checkpoint: a file, written every `save_s` seconds; goes on from it if it is there.
        progress: where to report.
        key: what the training depends on besides the schedule; a checkpoint of another one is refused.
        save_s: seconds between two checkpoints.

    Raises:
        InputError: the checkpoint is of another training, or the loss is not finite.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=schedule.rate, betas=(0.9, 0.99), weight_decay=1e-4)
    averages = [parameter.detach().clone() for parameter in trained]
    of = {"schedule": asdict(schedule), "key": key}
    done, running = 0, math.nan
    if checkpoint.exists():
        state = load_checkpoint(checkpoint)
        done, running, averages = _resume(state, of, module, optimizer, checkpoint)
    module.train()
    saved = time.monotonic()
    for step in progress.track(range(done, schedule.steps), checkpoint.stem):
        generator = torch.Generator().manual_seed(schedule.seed * 1_000_003 + step)
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate_at(step)
        loss = loss_of(generator)
        if not torch.isfinite(loss):
            raise InputError(f"{checkpoint.stem}: the loss is {float(loss)} at step {step + 1}; lower the rate, or go on from the last checkpoint")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        value = float(loss.detach())
        running = value if math.isnan(running) else running + 0.01 * (value - running)
        with torch.no_grad():
            torch._foreach_lerp_(averages, [p.detach() for p in trained], 1 - min(schedule.average, (1 + step) / (20 + step)))
        last = step + 1 == schedule.steps
        if last or time.monotonic() - saved > save_s:
            state = {"of": of, "step": step + 1, "running": running, "module": module.state_dict(), "optimizer": optimizer.state_dict(), "averages": averages}
            save_checkpoint(checkpoint, state)
            progress.note(f"{checkpoint.stem}: step {step + 1}/{schedule.steps}, loss {running:.4g}")
            saved = time.monotonic()
    with torch.no_grad():
        for parameter, average in zip(trained, averages, strict=True):
            parameter.copy_(average)
    module.eval()
    return running


def _resume(state: dict[str, Any], of: dict[str, Any], module: nn.Module, optimizer: torch.optim.Optimizer, path: Path) -> tuple[int, float, list[Tensor]]:
    if state.get("of") != of:
        raise InputError(f"checkpoint {path} belongs to another training (schedule, data or model differ); remove it, or give another --work")
    module.load_state_dict(state["module"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"], state["running"], state["averages"]
