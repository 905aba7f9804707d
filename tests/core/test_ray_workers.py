"""Workers on a real local Ray: a killed worker is replaced, and addresses or sizes that cannot work are refused."""

import os
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from nas.crew import Crew
from nas.errors import InputError
from nas.executor import Origin, WorkerLost, Workplace
from nas.job import search
from tests.core.test_executor import TOY
from tests.core.test_local_workers import SPACE, Die, Fail, hang

ray = pytest.importorskip("ray")

from nas.ray_workers import RayWorkers  # noqa: E402  # needs Ray

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Pid:
    def __call__(self, place: Workplace) -> int:
        return os.getpid()


@dataclass(frozen=True)
class Mark:
    """A setup: writes a line for each worker that does it."""

    file: Path

    def __call__(self, place: Workplace) -> None:
        with self.file.open("a") as file:
            file.write(f"{os.getpid()}\n")


def test_a_search_on_ray_finds_what_one_on_local_workers_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    for executor in ("ray", "local"):
        monkeypatch.setenv("NAS_HOME", str(tmp_path / executor))
        crew = Crew(2, executor, threads=1 if executor == "ray" else 2, timeout_s=120.0)
        result = search(TOY, 0.05, optimizer="random", trials=6, workdir=None, workers=crew)
        found[executor] = [(t.candidate, t.divergence) for t in result.study.trials], result.table["stages"]
    assert found["ray"] == found["local"]


def test_an_address_where_nothing_answers_is_refused_soon() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: nobody answers
        with pytest.raises(InputError, match=r"no Ray cluster answers at '127.0.0.1:.*ray start --head"):
            RayWorkers(Origin("synthetic:3"), 1, address=f"127.0.0.1:{taken.getsockname()[1]}")
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as other:
        Thread(target=other.serve_forever, daemon=True).start()
        with pytest.raises(InputError, match=r"something other than Ray is there.; start one with: ray start --head .docs/cluster.md."):
            RayWorkers(Origin("synthetic:3"), 1, address=f"127.0.0.1:{other.server_port}")
        other.shutdown()
    with pytest.raises(InputError, match="reads HOST:PORT"):
        RayWorkers(Origin("synthetic:3"), 1, address="somewhere")


@pytest.fixture(scope="module")
def workers() -> Iterator[RayWorkers]:
    with RayWorkers(SPACE, 2, attempts=2, timeout_s=60.0) as workers:
        yield workers


def test_a_killed_worker_is_replaced_and_its_task_done_by_another(workers: RayWorkers, tmp_path: Path) -> None:
    before = {workers.submit(Pid()).result() for _ in range(8)}
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    after = {workers.submit(Pid()).result() for _ in range(4)}
    assert not before & after
    assert workers.submit(Die(tmp_path / "died")).result() == "alive"


def test_a_task_that_no_worker_survives_fails_alone(workers: RayWorkers) -> None:
    with pytest.raises(WorkerLost, match="no worker survived it in 2 attempts"):
        workers.submit(Die()).result()
    with pytest.raises(InputError, match="wrong name"):
        workers.submit(Fail(True)).result()


def test_a_shared_setup_is_done_once_by_every_worker_also_by_a_new_one(workers: RayWorkers, tmp_path: Path) -> None:
    workers.share(Mark(tmp_path / "marks"))
    pids = {workers.submit(Pid()).result() for _ in range(8)}
    os.kill(next(iter(pids)), signal.SIGKILL)
    pids |= {workers.submit(Pid()).result() for _ in range(8)}
    marks = (tmp_path / "marks").read_text().split()
    assert pids <= set(map(int, marks))
    assert len(marks) == len(set(marks))


def test_a_hanging_worker_is_ended(workers: RayWorkers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_timeout_s", 3.0)
    monkeypatch.setattr(workers, "_attempts", 1)
    with pytest.raises(WorkerLost, match="no answer within 3 s"):
        workers.submit(hang).result()


def test_more_gpus_than_the_cluster_has_are_refused(workers: RayWorkers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_gpus", 1.0)
    with pytest.raises(InputError, match="2 workers need 2 GPUs, the Ray cluster has 0; use fewer --workers"):
        workers._check_room()
