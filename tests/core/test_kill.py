"""A search killed at any moment and started again by the same command ends as if nothing had happened."""

import json
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from nas.errors import NasError
from nas.job import search
from nas.record import Record
from tests.core.test_cli import nas

ROOT = Path(__file__).parents[2]


def command(workdir: Path, optimizer: str) -> list[str]:
    search = ["search", "--space", "synthetic:3", "--eps", "0.003", "--eps", "0.005", "--trials", "14", "--optimizer", optimizer]
    return [sys.executable, "-c", "from nas.cli.app import main; main()", *search, "--workdir", str(workdir), "--name", "run", "--json", "--quiet"]


def finished(workdir: Path, optimizer: str) -> dict[str, Any]:
    done = subprocess.run(command(workdir, optimizer), capture_output=True, text=True, check=False)
    assert done.returncode in (0, 3), done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def rows(workdir: Path) -> list[tuple[Any, ...]]:
    with Record(workdir / "run" / "study.db", read_only=True) as record:
        return [(t.number, t.candidate, t.divergence, t.stderr, t.n_samples, t.state) for t in record.trials()]


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["eps_gp", "optuna:tpe", "evolution"])
def test_a_search_killed_at_random_moments_ends_like_an_uninterrupted_one(tmp_path: Path, optimizer: str) -> None:
    whole = finished(tmp_path / "whole", optimizer)
    moments = random.Random(0)
    for _ in range(5):
        process = subprocess.Popen(command(tmp_path / "killed", optimizer), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _await_trial(tmp_path / "killed", process)
        time.sleep(moments.uniform(0, 0.5))
        process.kill()
        process.wait()
    killed = finished(tmp_path / "killed", optimizer)
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")
    assert killed["winners"] == whole["winners"]


def _await_trial(workdir: Path, process: subprocess.Popen[bytes]) -> None:
    """Waits until the search records something new, or ends."""
    database = workdir / "run" / "study.db"
    before = len(rows(workdir)) if database.exists() else 0
    while process.poll() is None and not (database.exists() and _count(workdir) > before):
        time.sleep(0.02)


def _count(workdir: Path) -> int:
    try:
        return len(rows(workdir))
    except (NasError, sqlite3.Error):  # it may be half made while we look
        return 0


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_search_prints_how_to_go_on(tmp_path: Path, number: signal.Signals, code: int) -> None:
    process = subprocess.Popen(command(tmp_path, "random"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    _await_trial(tmp_path, process)  # type: ignore[arg-type]
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    if process.returncode in (0, 3):
        pytest.skip("the search was done before the signal came")
    assert process.returncode == code, stderr
    assert "Go on with: nas search --space synthetic:3 --eps 0.003" in stderr


@pytest.mark.slow
@pytest.mark.parametrize("rows", ["calibration", "workers"])
def test_a_calibration_and_a_search_with_workers_that_are_killed_lose_nothing(tmp_path: Path, rows: str) -> None:
    result = tmp_path / "kills.json"
    command = ["benchmarks/kills.py", "--rows", rows, "--optimizers", "random", "--kills", "3", "--to", str(result)]
    subprocess.run([sys.executable, *command], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    (row,) = json.loads(result.read_text())["rows"]
    assert row["kills"] == 3
    assert row["identical_end"]
    assert row["acknowledged_lost"] == row.get("recomputed", 0) == row.get("partial_files", 0) == 0


DEADLY = """
import os, signal
from dataclasses import replace
from nas.names import resolve_space

class Deadly:
    def __init__(self, inner):
        self.inner = inner
    def measure(self, candidates, eps=()):
        if {candidate} in map(tuple, candidates):
            os.kill(os.getpid(), signal.SIGKILL)
        return self.inner.measure(candidates, eps)

class Space:
    inner = resolve_space("synthetic:3")
    space = inner.space
    def fingerprint(self):
        return self.inner.fingerprint()
    def costs(self):
        return self.inner.costs()
    def prepare(self, progress):
        task = self.inner.prepare(progress)
        return replace(task, evaluator=Deadly(task.evaluator))

def make_space():
    return Space()
"""


@pytest.mark.slow
def test_a_candidate_that_always_kills_its_worker_is_one_failed_trial_and_the_search_goes_on(tmp_path: Path) -> None:
    alone = search("synthetic:3", 0.005, optimizer="random", trials=8, workdir=None)
    doomed = alone.study.trials[3].candidate
    file = tmp_path / "deadly.py"
    file.write_text(DEADLY.format(candidate=doomed))
    options = ["--space", f"{file}:make_space", "--eps", "0.005", "--optimizer", "random", "--trials", "8", "--workers", "2", "--workdir", str(tmp_path)]
    done = nas("search", *options, "--name", "run", "--json", "--quiet")
    assert done.returncode in (0, 3), done.stderr
    found = rows(tmp_path)
    assert len(found) == 8
    assert [candidate for _, candidate, *_, state in found if state == "failed"] == [doomed]
    with Record(tmp_path / "run" / "study.db", read_only=True) as record:
        assert [trial.reason for trial in record.trials() if trial.state == "failed"] == ["no worker survived it in 3 attempts: killed by signal 9"]
