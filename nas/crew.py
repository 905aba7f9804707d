"""Who computes: this process alone, local worker processes, or a Ray cluster."""

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from nas.arguments import text, whole
from nas.errors import InputError, did_you_mean
from nas.executor import Executor, Origin, check_workers

EXECUTORS = ("local", "ray")


@dataclass(frozen=True, slots=True)
class Crew:
    """How many workers, where they are, and how long a task may take.

    Attributes:
        workers: tasks under way at a time; one local worker is this process itself.
        executor: "local" or "ray".
        address: of a Ray cluster; None starts one on this machine.
        timeout_s: seconds after which the worker of a task counts as hung.
        threads: compute threads, all local workers together, by default all cores this process may use; on Ray of each worker, by default 1.
    """

    workers: int = 1
    executor: str = "local"
    address: str | None = None
    timeout_s: float = 3600.0
    threads: int | None = None

    def __post_init__(self) -> None:
        check_workers(self.workers, self.timeout_s)
        if self.threads is not None:
            whole("threads", self.threads, 1)
        if text("executor", self.executor, EXECUTORS[0]) not in EXECUTORS:
            raise InputError(f"unknown executor '{self.executor}'{did_you_mean(self.executor, EXECUTORS)}")
        if self.address is not None and self.executor != "ray":
            raise InputError("--address is the address of a Ray cluster; give --executor ray with it")

    @property
    def alone(self) -> bool:
        """Whether this process does all the work itself."""
        return self.executor == "local" and self.workers == 1

    @property
    def threads_each(self) -> int:
        """Compute threads of one worker: the total divided, never more together than asked for unless each has but one; on Ray as given."""
        if self.executor == "ray":
            return self.threads or 1
        return max(1, (self.threads or usable_cores()) // self.workers)

    def open(self, space: str, options: Mapping[str, Any], fingerprint: Mapping[str, str]) -> "AbstractContextManager[Executor | None]":
        """The workers, for a space that they make themselves and that has this fingerprint; None when this process is alone."""
        if self.alone:
            return nullcontext(None)
        origin = Origin(space, dict(options), self.threads_each, dict(fingerprint), apart=self.executor == "ray")
        if self.executor == "ray":
            from nas.ray_workers import RayWorkers

            return RayWorkers(origin, self.workers, address=self.address, timeout_s=self.timeout_s, gpus_each=float(_on_cuda(options)))
        from nas.local_workers import LocalWorkers

        return LocalWorkers(origin, self.workers, timeout_s=self.timeout_s, gpus=_gpus(options))


def usable_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpus(options: Mapping[str, Any]) -> int:
    """CUDA devices to deal out: those there are when the device is plain `cuda`, else none."""
    if options.get("device") != "cuda":
        return 0
    import torch

    return torch.cuda.device_count()


def _on_cuda(options: Mapping[str, Any]) -> bool:
    return str(options.get("device", "")).startswith("cuda")
