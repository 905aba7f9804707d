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
from nas.record import Record


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
