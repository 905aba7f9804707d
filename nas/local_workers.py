"""Workers as local processes: started afresh (spawn) when there is work, one task at a time each, ended with the driver.

A worker that dies or exceeds the time limit is replaced and its task tried again; after so many attempts the task fails alone.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from nas.errors import NasError
from nas.executor import Origin, WorkerLost, Workplace, check_workers

T = TypeVar("T")

ATTEMPTS = 3
TIMEOUT_S = 3600.0

_START = threading.Lock()  # the environment is the whole process's; one worker is started at a time

Task = Callable[[Workplace], Any]


class LocalWorkers:
    """An executor of local processes.

    Args:
        origin: the space the workers make for themselves.
        n_workers: processes, of `origin.threads` compute threads each.
        timeout_s: seconds a task may take before its worker counts as hung.
        attempts: how often a task is tried before it fails.
        gpus: CUDA devices dealt out to the workers in turn; 0 leaves the environment as it is.
    """

    def __init__(self, origin: Origin, n_workers: int, *, timeout_s: float = TIMEOUT_S, attempts: int = ATTEMPTS, gpus: int = 0) -> None:
        check_workers(n_workers, timeout_s)
        self.n_workers = n_workers
        self._origin, self._timeout_s, self._attempts, self._gpus = origin, timeout_s, attempts, gpus
        self._queue: SimpleQueue[tuple[Task, Future[Any]] | None] = SimpleQueue()
        self._attendants: list[threading.Thread] = []
        self._workers: dict[int, _Worker] = {}
        self._closed = False

    def __enter__(self) -> "LocalWorkers":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, task: Callable[[Workplace], T]) -> "Future[T]":
        """The task's result to come; processes are started at the first task."""
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
            try:
                future.set_result(self._attempt(number, task))
            except BaseException as error:  # whatever it is, it belongs to who waits for the result
                future.set_exception(error)

    def _attempt(self, number: int, task: Task) -> Any:
        reason = ""
        for _ in range(self._attempts):
            if self._closed:
                raise WorkerLost("the workers were ended before the task was done")
            worker = self._worker(number)
            try:
                return worker.do(task, self._timeout_s)
            except _Lost as lost:
                reason = str(lost)
                worker.kill()
        raise WorkerLost(f"no worker survived it in {self._attempts} attempts: {reason}")

    def _worker(self, number: int) -> "_Worker":
        """The attendant's worker; a new one where there is none alive."""
        with _START:
            worker = self._workers.get(number)
            if self._closed or worker is None or not worker.alive:
                device = number % self._gpus if self._gpus else None
                self._workers[number] = worker = _Worker(self._origin, device)
                if self._closed:
                    worker.kill()
        return worker


class _Lost(Exception):
    """The worker died or hung; the message says how."""


class _Worker:
    """One process and the pipe to it."""

    def __init__(self, origin: Origin, device: int | None) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process: BaseProcess = context.Process(target=_work, args=(theirs, origin), daemon=True)
        with _environment(origin.threads, device):
            self._process.start()
        theirs.close()

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    def do(self, task: Task, timeout_s: float) -> Any:
        """The task's result; its own exceptions are raised as they are."""
        try:
            self._pipe.send(task)
            if not wait([self._pipe, self._process.sentinel], timeout_s):
                raise _Lost(f"no answer within {timeout_s:g} s")
            answer, failure = self._pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionError):
            raise _Lost(self._end()) from None
        if failure is not None:
            raise failure
        return answer

    def kill(self) -> None:
        self._process.kill()
        self._process.join()

    def _end(self) -> str:
        self._process.join(10)
        code = self._process.exitcode
        return f"killed by signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}"


@contextmanager
def _environment(threads: int, device: int | None) -> Iterator[None]:
    """Processes started meanwhile compute on so many threads, and see one device: libraries read this when they are loaded."""
    wanted = {"OMP_NUM_THREADS": str(threads)} | ({} if device is None else {"CUDA_VISIBLE_DEVICES": str(device)})
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _work(pipe: Connection, origin: Origin) -> None:
    """The worker: makes its space, then answers one task after the other until the driver is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the driver decides what ends
    threading.Thread(target=_end_with_driver, daemon=True).start()
    place: Workplace | None = None
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionError):
        while True:
            task = pipe.recv()
            try:
                place = place or Workplace(origin)
                answer: tuple[Any, Exception | None] = (task(place), None)
            except Exception as error:
                answer = (None, _sendable(error))
            pipe.send(answer)


def _end_with_driver() -> None:
    """Ends this process as soon as the driver's has ended, however it ended."""
    driver = multiprocessing.parent_process()
    assert driver is not None
    wait([driver.sentinel])
    os._exit(1)


def _sendable(error: Exception) -> Exception:
    """The error itself if it is the user's to mend; else one with the worker's traceback, since not every exception can travel."""
    return error if isinstance(error, NasError) else RuntimeError("in a worker:\n" + "".join(traceback.format_exception(error)))
