"""One training loop for the networks of TOC-SR: accumulation, mixed precision, averaged weights, several GPUs, exact resume.

Batch number `k` of a training (`accumulate` batches a step, counted from the start) is drawn and noised by a generator that seed and `k`
decide. So a training that was stopped goes on exactly as if nothing had happened, and several processes (`accelerate launch`), which
share the batches of a step out among themselves, compute the step that one process would.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import send_to_device
from diffusers.training_utils import EMAModel
from torch import Generator, Tensor, nn

from nas import arguments
from nas.checkpoint import load_checkpoint, save_checkpoint
from nas.errors import DamagedFile, InputError, RunMismatch
from nas.files import Form, check_form
from nas.progress import Progress, Quiet, tell_scalars
from nas.spaces.tocsr.resources import check_disk, check_memory

Draw = Callable[[Generator, int], Any]
"""A batch of so many samples (tensors, in tuples or dicts), decided by the generator; called in a thread, one batch ahead."""

Loss = Callable[[nn.Module, Any, Generator], Tensor]
"""The loss of a batch, a scalar, with noise from the generator (CPU). It must call the module it is given, which may be a wrapper."""

Evaluate = Callable[[nn.Module], Mapping[str, float]]
"""Named figures of the network, which is in evaluation mode and holds the averaged weights."""

Precision = Literal["fp32", "bf16", "fp16"]

_PRECISIONS: dict[Precision, str] = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}

_FORM: Form = {
    "identity": dict, "step": int, "curve": [{str: int | float | None}], "mean": {"total": int | float, "count": int}, "module": {str: Tensor},
    "optimizer": dict, "average": dict, "scaler": dict | None,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """How long and how fast a network is trained; a checkpoint goes on only under the settings that made it, `steps` and `save_s` apart.

    AdamW at `rate` after `warmup` steps, falling to 2 % of it over the last share `decay` of the steps; gradients clipped to norm `clip`.

    Attributes:
        batch: samples of one forward pass; a step's gradient is the mean over `accumulate` of them, whatever the number of processes.
        average: decay of the exponential average of the weights (a shorter memory at the start).
        precision: what forward passes are computed in; weights, averages and losses are fp32.
        save_s: seconds between checkpoints.
    """

    steps: int
    batch: int = 16
    accumulate: int = 1
    rate: float = 1e-4
    warmup: int = 0
    decay: float = 0.4
    weight_decay: float = 0.01
    clip: float = 1.0
    average: float = 0.999
    precision: Precision = "fp32"
    seed: int = 0
    save_s: float = 60.0

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("batch", 1), ("accumulate", 1), ("warmup", 0), ("seed", 0)):
            arguments.whole(name, getattr(self, name), least)
        arguments.number("weight_decay", self.weight_decay, 0.0)
        for name in ("clip", "save_s"):  # either may be infinite
            if not getattr(self, name) >= 0:
                raise InputError(f"{name} must be at least 0, got {getattr(self, name)}")
        if arguments.number("rate", self.rate) <= 0:
            raise InputError(f"rate must be a positive number, got {self.rate}")
        for name in ("decay", "average"):
            if not 0 <= arguments.number(name, getattr(self, name)) < 1:
                raise InputError(f"{name} must lie between 0 and 1 (1 excluded), got {getattr(self, name)}")
        if self.precision not in _PRECISIONS:
            raise InputError(f"precision must be {', '.join(_PRECISIONS)}, got '{self.precision}'")

    def rate_at(self, step: int) -> float:
        """The rate of a step, counted from 0."""
        descent = (self.steps - step) / (self.decay * self.steps) if self.decay else 1.0
        return self.rate * min(1.0, (step + 1) / (self.warmup + 1), max(0.02, descent))


@dataclass
class _Mean:
    """Mean loss since it was last asked."""

    total: float = 0.0
    count: int = field(default=0)

    def add(self, value: float) -> None:
        self.total, self.count = self.total + value, self.count + 1

    def take(self) -> float | None:
        mean = self.total / self.count if self.count else None
        self.total, self.count = 0.0, 0
        return mean


class Trainer:
    """Trains the parameters of a module that require gradients.

    Args:
        module: moved to the device; after `run` it holds the averaged weights.
        draw: makes batches.
        loss: what is minimised.
        settings: how.
        device: cpu, cuda or cuda:N; with several processes each takes the GPU that `accelerate launch` gives it.
        origin: JSON values that tell network and data apart; a checkpoint of another origin is refused.
    """

    def __init__(
        self, module: nn.Module, draw: Draw, loss: Loss, settings: TrainingSettings, *, device: str = "cpu", origin: Mapping[str, Any] | None = None
    ) -> None:
        self._accelerator = _accelerator(settings.precision, device)
        self.module, self.settings, self.step = module.to(self._accelerator.device), settings, 0
        self.curve: list[dict[str, float | None]] = []
        self._draw, self._loss, self._mean, self._origin = draw, loss, _Mean(), dict(origin or {})
        self._share = settings.accumulate // self._accelerator.num_processes
        if self._share * self._accelerator.num_processes != settings.accumulate:
            raise InputError(f"accumulate must be a multiple of the {self._accelerator.num_processes} processes that share it, got {settings.accumulate}")
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        check_memory(self._parameters, self._accelerator.device)
        self._optimizer = self._accelerator.prepare_optimizer(torch.optim.AdamW(self._parameters, lr=settings.rate, weight_decay=settings.weight_decay))
        self._average = EMAModel(self._parameters, decay=settings.average, foreach=True)

    def write(self, make: Callable[[], None]) -> None:
        """Calls `make` in the one process that writes files; the others go on once it is done."""
        if self._accelerator.is_main_process:
            make()
        self._accelerator.wait_for_everyone()

    def run(self, checkpoint: Path, evaluate: Evaluate | None = None, every: int = 100, progress: Progress | None = None) -> list[dict[str, float | None]]:
        """Trains to `settings.steps`, from the checkpoint if there is one; returns the curve.

        A row has `step`, the mean `loss` since the row before, and what `evaluate` says; one at the start, one every `every` steps, one at the end.

        Raises:
            RunMismatch: the checkpoint was made with other settings, network or data.
            InputError: the disk has no room for a checkpoint and the one before it, or the loss is no longer finite.
        """
        check_disk(self._parameters, checkpoint)
        if checkpoint.exists():
            self._load(checkpoint)
        elif evaluate is not None:
            self._note(evaluate)
            self._tell(progress, checkpoint)
        saved = time.monotonic()
        with self._mode(training=True), self._wrapped() as network, self._batches() as batches:
            for _ in (progress or Quiet()).track(range(self.step, self.settings.steps), "training"):
                self._advance(network, batches)
                last = self.step == self.settings.steps
                if evaluate is not None and (last or self.step % every == 0):
                    self._note(evaluate)
                    self._tell(progress, checkpoint)
                if last or time.monotonic() - saved > self.settings.save_s:
                    self._save(checkpoint)
                    saved = time.monotonic()
        self._average.copy_to(self._parameters)
        return self.curve

    def _tell(self, progress: Progress | None, checkpoint: Path) -> None:
        """Hands the curve's last row on to whoever logs trainings, under the checkpoint's name."""
        if self._accelerator.is_main_process:
            values = {name: value for name, value in self.curve[-1].items() if name != "step"}
            tell_scalars(progress, checkpoint.name.lstrip(".").partition(".")[0], values, self.step)

    def _advance(self, network: nn.Module, batches: Iterator[tuple[Any, Generator]]) -> None:
        """One optimizer step."""
        for group in self._optimizer.param_groups:
            group["lr"] = self.settings.rate_at(self.step)
        self._optimizer.zero_grad(set_to_none=True)
        for part in range(self._share):
            batch, random = next(batches)
            gathers = part == self._share - 1
            with nullcontext() if gathers else self._accelerator.no_sync(network):
                with self._accelerator.autocast():
                    loss = self._loss(network, send_to_device(batch, self._accelerator.device), random)
                self._check(loss)
                self._accelerator.backward(loss / self._share)
            self._mean.add(float(loss.detach()))
        self._accelerator.clip_grad_norm_(self._parameters, self.settings.clip)
        self._optimizer.step()
        self.step += 1
        self._average.step(self._parameters)

    @contextmanager
    def _batches(self) -> Iterator[Iterator[tuple[Any, Generator]]]:
        """The batches of this process from the present step on, each drawn while the one before is computed with."""

        def drawn(number: int) -> tuple[Any, Generator]:
            random = seeded(self.settings.seed, number)
            return self._draw(random, self.settings.batch), random

        def in_order() -> Iterator[tuple[Any, Generator]]:
            first = self.step * self.settings.accumulate + self._accelerator.process_index
            numbers = range(first, self.settings.steps * self.settings.accumulate, self._accelerator.num_processes)
            ahead: Future[tuple[Any, Generator]] | None = None
            for number in numbers:
                now = ahead or executor.submit(drawn, number)
                following = number + self._accelerator.num_processes
                ahead = executor.submit(drawn, following) if following in numbers else None
                yield now.result()

        with ThreadPoolExecutor(1) as executor:
            yield in_order()

    def _check(self, loss: Tensor) -> None:
        if not torch.isfinite(loss):
            raise InputError(
                f"training: the loss must be finite, became {loss.item()} at step {self.step + 1}, rate {self.settings.rate_at(self.step):.1e}; "
                "start again with a smaller rate"
            )

    def _note(self, evaluate: Evaluate) -> None:
        """Appends a row to the curve: in every process the same, while the others would only wait.

        With several processes the loss of the first row after a resume is approximate: what came before is the main process's alone.
        """
        loss = self._mean.take()
        if loss is not None:
            loss = float(self._accelerator.reduce(torch.tensor(loss, device=self._accelerator.device), "mean"))
        with self._mode(training=False), self._averaged(), torch.no_grad():
            self.curve.append({"step": self.step, "loss": loss, **evaluate(self.module)})

    @contextmanager
    def _mode(self, *, training: bool) -> Iterator[None]:
        before = self.module.training
        self.module.train(training)
        try:
            yield
        finally:
            self.module.train(before)

    @contextmanager
    def _wrapped(self) -> Iterator[nn.Module]:
        """The module as the loss calls it: it gathers gradients over processes and computes in the precision asked for."""
        try:
            yield self._accelerator.prepare_model(self.module)
        finally:
            for name in ("forward", "_original_forward"):  # accelerate leaves them on the module, where a copy would call the original
                vars(self.module).pop(name, None)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The averaged weights in place of the present ones."""
        self._average.store(self._parameters)
        self._average.copy_to(self._parameters)
        try:
            yield
        finally:
            self._average.restore(self._parameters)

    def _identity(self) -> dict[str, Any]:
        return {**asdict(self.settings), **self._origin}

    def _trained(self) -> dict[str, Tensor]:
        """State dict without frozen parameters."""
        frozen = {name for name, parameter in self.module.named_parameters() if not parameter.requires_grad}
        return {name: value for name, value in self.module.state_dict().items() if name not in frozen}

    def _save(self, path: Path) -> None:
        """Writes the checkpoint in one process, by whose clock it is time; the others wait for its next gradients."""
        if not self._accelerator.is_main_process:
            return
        scaler = self._accelerator.scaler
        state = {
            "identity": self._identity(), "step": self.step, "curve": self.curve, "mean": asdict(self._mean), "module": self._trained(),
            "optimizer": self._optimizer.state_dict(), "average": self._average.state_dict(), "scaler": scaler.state_dict() if scaler else None,
        }  # fmt: skip
        save_checkpoint(path, state)

    def _load(self, path: Path) -> None:
        state = check_form(load_checkpoint(path), _FORM, f"checkpoint {path}")
        there, now = state["identity"], self._identity()
        for name in sorted({*there, *now} - {"steps", "save_s"}):
            if there.get(name) != now.get(name):
                way_out = "give the same options again, or move the checkpoint away to start afresh"
                raise RunMismatch(f"checkpoint {path} was made with {name} {there.get(name)!r}, now it is {now.get(name)!r}; {way_out}")
        if state["step"] > self.settings.steps:
            way_out = "give at least as many, or move the checkpoint away to start afresh"
            raise RunMismatch(f"checkpoint {path} has taken {state['step']} steps, more than the {self.settings.steps} asked for; {way_out}")
        try:
            self._restore(state)
        except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise DamagedFile(f"checkpoint {path} does not fit this training: {reason}; move it away to start afresh") from error

    def _restore(self, state: Mapping[str, Any]) -> None:
        if state["step"] < 0:
            raise ValueError(f"its step must be at least 0, got {state['step']}")
        if differing := set(state["module"]) ^ set(self._trained()):
            raise ValueError(f"{len(differing)} weights are missing or unexpected, such as '{min(differing)}'")
        self.module.load_state_dict(state["module"], strict=False)  # it lacks what is frozen
        self._optimizer.load_state_dict(state["optimizer"])
        self._average.load_state_dict(state["average"])
        self._average.to(self._accelerator.device)
        if state["scaler"] is not None and self._accelerator.scaler is not None:
            self._accelerator.scaler.load_state_dict(state["scaler"])
        self.step, self.curve, self._mean = state["step"], state["curve"], _Mean(**state["mean"])


def seeded(seed: int, number: int) -> Generator:
    """A generator that seed and number decide, far from those of other seeds and numbers."""
    return Generator().manual_seed(int(np.random.SeedSequence((seed, number)).generate_state(1, np.uint64)[0] >> np.uint64(1)))


def _accelerator(precision: Precision, device: str) -> Accelerator:
    kind = torch.device(device)
    if precision == "fp16" and kind.type != "cuda":
        raise InputError(f"precision fp16 needs a GPU, got device '{device}'; use bf16 or fp32")
    if kind.type == "cuda" and kind.index is not None:
        torch.cuda.set_device(kind)
    AcceleratorState._reset_state(reset_partial_state=True)  # it holds one precision and device a process, and another training may ask for others
    return Accelerator(mixed_precision=_PRECISIONS[precision], cpu=kind.type == "cpu")
