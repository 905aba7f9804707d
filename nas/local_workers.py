"""Workers as local processes: started afresh (spawn) when there is work, one task at a time each, ended with the driver."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from nas.attended import ATTEMPTS, TIMEOUT_S, AttendedWorkers, Lost, Work, sendable
from nas.executor import Origin, Workplace


class LocalWorkers(AttendedWorkers):
    """An executor of local processes.

    Args:
        origin: the space the workers make for themselves.
        n_workers: processes, of `origin.threads` compute threads each.
        timeout_s: seconds a task may take before its worker counts as hung.
        attempts: how often a task is tried before it fails.
        gpus: CUDA devices dealt out to the workers in turn; 0 leaves the environment as it is.
    """

    apart = False

    def __init__(self, origin: Origin, n_workers: int, *, timeout_s: float = TIMEOUT_S, attempts: int = ATTEMPTS, gpus: int = 0) -> None:
        super().__init__(n_workers, timeout_s=timeout_s, attempts=attempts)
        self._origin, self._gpus = origin, gpus

    def share(self, setup: Callable[[Workplace], None]) -> None:
        """Nothing: the workers read and write the same folders as the driver."""

    def _start(self, number: int) -> "_Worker":
        return _Worker(self._origin, number % self._gpus if self._gpus else None)


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

    def do(self, task: Work, timeout_s: float | None) -> Any:
        """The task's result; its own exceptions are raised as they are."""
        try:
            self._pipe.send(task)
            if not wait([self._pipe, self._process.sentinel], timeout_s):
                raise Lost(f"no answer within {timeout_s:g} s")
            answer, failure = self._pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionError):
            raise Lost(self._end()) from None
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
                answer = (None, sendable(error))
            pipe.send(answer)


def _end_with_driver() -> None:
    """Ends this process as soon as the driver's has ended, however it ended."""
    driver = multiprocessing.parent_process()
    assert driver is not None
    wait([driver.sentinel])
    os._exit(1)
