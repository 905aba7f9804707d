"""Tasks on local processes: results, deaths, hangs, and what is left when the driver is gone."""

import contextlib
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from nas.errors import InputError
from nas.executor import Origin, WorkerLost, Workplace
from nas.local_workers import LocalWorkers

SPACE = Origin("synthetic:3")


@dataclass(frozen=True)
class Square:
    number: int

    def __call__(self, place: Workplace) -> tuple[int, int, str]:
        return self.number**2, os.getpid(), place.space.space.name


@dataclass(frozen=True)
class Fail:
    """Raises."""

    of_the_user: bool

    def __call__(self, place: Workplace) -> None:
        raise InputError("wrong name") if self.of_the_user else ZeroDivisionError("a bug")


@dataclass(frozen=True)
class Die:
    """Kills its worker; only so many times where there is a file to remember that in."""

    memory: Path | None = None
    times: int = 1

    def __call__(self, place: Workplace) -> str:
        if self.memory is not None:
            with self.memory.open("a+") as file:
                file.write("x")
            if self.memory.stat().st_size > self.times:
                return "alive"
        os.kill(os.getpid(), signal.SIGKILL)
        return "never"


def hang(place: Workplace) -> None:
    time.sleep(600)


@pytest.fixture(scope="module")
def workers() -> Iterator[LocalWorkers]:
    with LocalWorkers(SPACE, 2) as workers:
        yield workers


def test_tasks_run_in_other_processes_on_the_space_they_name(workers: LocalWorkers) -> None:
    results = [future.result() for future in [workers.submit(Square(n)) for n in range(6)]]
    assert [square for square, _, _ in results] == [0, 1, 4, 9, 16, 25]
    assert os.getpid() not in {pid for _, pid, _ in results}
    assert {name for _, _, name in results} == {"synthetic-3"}


def test_an_error_of_the_user_comes_back_as_it_is_and_a_bug_with_its_traceback(workers: LocalWorkers) -> None:
    with pytest.raises(InputError, match="wrong name"):
        workers.submit(Fail(True)).result()
    with pytest.raises(RuntimeError, match=r"in a worker:(.|\n)*ZeroDivisionError: a bug"):
        workers.submit(Fail(False)).result()


def test_a_task_whose_worker_died_twice_is_tried_a_third_time(workers: LocalWorkers, tmp_path: Path) -> None:
    assert workers.submit(Die(tmp_path / "died", times=2)).result() == "alive"
    assert workers.state == "0 of 2 workers busy, 2 replaced"


def test_a_task_that_no_worker_survives_fails_alone(workers: LocalWorkers) -> None:
    doomed, other = workers.submit(Die()), workers.submit(Square(3))
    with pytest.raises(WorkerLost, match="3 attempts: killed by signal 9"):
        doomed.result()
    assert other.result()[0] == 9


def test_a_worker_that_hangs_is_ended() -> None:
    with LocalWorkers(SPACE, 1, timeout_s=3.0, attempts=1) as workers, pytest.raises(WorkerLost, match="no answer within 3 s"):
        workers.submit(hang).result()


@pytest.mark.parametrize("timeout_s", [math.inf, 1e9])
def test_a_task_may_take_for_ever(timeout_s: float) -> None:
    with LocalWorkers(SPACE, 1, timeout_s=timeout_s) as workers:
        assert workers.submit(Square(3)).result(60)[0] == 9


def test_a_space_that_comes_out_differently_is_refused() -> None:
    other = Origin("synthetic:3", fingerprint={"teacher": "other"})
    with LocalWorkers(other, 1) as workers, pytest.raises(InputError, match="comes out differently each time"):
        workers.submit(Square(1)).result()


def test_leaving_ends_workers_that_are_busy() -> None:
    with LocalWorkers(SPACE, 1) as workers:
        pid = workers.submit(Square(1)).result()[1]
        busy = workers.submit(hang)
    assert not _alive(pid)
    assert busy.cancelled() or isinstance(busy.exception(), WorkerLost)


@pytest.mark.parametrize("number", [0, -1])
def test_there_is_at_least_one_worker(number: int) -> None:
    with pytest.raises(InputError, match="workers must be at least 1"):
        LocalWorkers(SPACE, number)


DRIVER = """
from nas.local_workers import LocalWorkers
from tests.core.test_local_workers import SPACE, Square, hang
with LocalWorkers(SPACE, 1) as workers:
    print(workers.submit(Square(1)).result()[1], flush=True)
    workers.submit(hang).result()
"""


def test_a_killed_driver_leaves_no_orphan() -> None:
    driver = subprocess.Popen([sys.executable, "-c", DRIVER], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    worker = int(driver.stdout.readline())
    assert _alive(worker)
    driver.kill()
    driver.wait()
    driver.stdout.close()
    for _ in range(1200):  # a busy machine may take its time
        if not _alive(worker):
            return
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.kill(worker, signal.SIGKILL)
    pytest.fail("the worker outlived its driver by 60 s")


def _alive(pid: int) -> bool:
    """Whether the process runs; a zombie that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
