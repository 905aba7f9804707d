"""Executors whose workers are each attended by a thread of the driver: it hands out tasks, and replaces a worker that died or hangs.

A task whose worker was lost is tried again; after so many attempts it fails alone.
"""

import contextlib
import threading
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any, Protocol, Self, TypeVar

from nas.errors import NasError
from nas.executor import WorkerLost, Workplace, check_workers

T = TypeVar("T")

Work = Callable[[Workplace], Any]

ATTEMPTS = 3
TIMEOUT_S = 3600.0
LONGEST_S = 2e6  # poll(2) counts milliseconds in 31 bits; above three weeks a task may take for ever

_START = threading.Lock()  # the environment is the whole process's; one worker is started at a time


class Lost(Exception):
    """The worker died or hung; the message says how."""


class Worker(Protocol):
    """One worker, wherever it runs."""

    @property
    def alive(self) -> bool: ...

    def do(self, task: Work, timeout_s: float | None) -> Any:
        """The task's result; its own exceptions are raised as they are. Raises `Lost` if the worker died or hangs; no `timeout_s` waits for ever."""
        ...

    def kill(self) -> None:
        """Ends the worker now; one that has ended stays so."""
        ...


class AttendedWorkers(ABC):
    """An executor; `_start` says what a worker is.

    Args:
        n_workers: tasks under way at a time.
        timeout_s: seconds a task may take before its worker counts as hung.
        attempts: how often a task is tried before it fails.
    """

    def __init__(self, n_workers: int, *, timeout_s: float = TIMEOUT_S, attempts: int = ATTEMPTS) -> None:
        check_workers(n_workers, timeout_s)
        self.n_workers = n_workers
        self._timeout_s, self._attempts = timeout_s if timeout_s <= LONGEST_S else None, attempts
        self._queue: SimpleQueue[tuple[Work, Future[Any]] | None] = SimpleQueue()
        self._attendants: list[threading.Thread] = []
        self._workers: dict[int, Worker] = {}
        self._busy: set[int] = set()
        self._replaced = 0
        self._closed = False

    @abstractmethod
    def _start(self, number: int) -> Worker:
        """A new worker."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def state(self) -> str:
        """How many of the workers have a task, and how many had to be replaced so far."""
        replaced = f", {self._replaced} replaced" if self._replaced else ""
        return f"{len(self._busy)} of {self.n_workers} workers busy{replaced}"

    def submit(self, task: Callable[[Workplace], T]) -> "Future[T]":
        """The task's result to come; workers are started at the first task."""
        future: Future[T] = Future()
        self._queue.put((task, future))
        if not self._attendants:
            self._attendants = [threading.Thread(target=self._attend, args=(i,), daemon=True) for i in range(self.n_workers)]
            for attendant in self._attendants:
                attendant.start()
        return future

    def close(self) -> None:
        """Ends all workers now; tasks that are not done are cancelled."""
        self._closed = True
        with contextlib.suppress(Empty):
            while True:
                work = self._queue.get_nowait()
                if work is not None:
                    work[1].cancel()
        for _ in self._attendants:
            self._queue.put(None)
        with _START:
            for worker in self._workers.values():
                worker.kill()
        for attendant in self._attendants:
            attendant.join()

    def _attend(self, number: int) -> None:
        """Serves one worker until the executor is closed."""
        while (work := self._queue.get()) is not None:
            task, future = work
            if not future.set_running_or_notify_cancel():
                continue
            self._busy.add(number)
            try:
                result = self._attempt(number, task)
            except BaseException as error:  # whatever it is, it belongs to who waits for the result
                self._busy.discard(number)
                future.set_exception(error)
            else:
                self._busy.discard(number)
                future.set_result(result)

    def _attempt(self, number: int, task: Work) -> Any:
        reason = ""
        for _ in range(self._attempts):
            if self._closed:
                raise WorkerLost("the workers were ended before the task was done")
            worker = self._worker(number)
            try:
                return worker.do(task, self._timeout_s)
            except Lost as lost:
                reason = str(lost)
                worker.kill()
        raise WorkerLost(f"no worker survived it in {self._attempts} attempts: {reason}")

    def _worker(self, number: int) -> Worker:
        """The attendant's worker; a new one where there is none alive."""
        with _START:
            worker = self._workers.get(number)
            if worker is None or not worker.alive:
                self._replaced += worker is not None
                self._workers[number] = worker = self._start(number)
                if self._closed:
                    worker.kill()
        return worker


def sendable(error: Exception) -> Exception:
    """The error itself if it is the user's to mend; else one with the worker's traceback, since not every exception can travel."""
    return error if isinstance(error, NasError) else RuntimeError("in a worker:\n" + "".join(traceback.format_exception(error)))
