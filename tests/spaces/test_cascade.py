"""The search that goes on with larger eps and recalibrates what it finds."""

import json
import os
from pathlib import Path

import pytest

import nas
from nas.names import resolve_space
from nas.progress import Quiet
from nas.spaces.cascade import CascadeSearch
from nas.spaces.network import NetworkSpace
from tests.core.test_cli import nas as command

TOY = f"{Path(__file__).parents[1] / 'core' / 'toy_space.py'}:make_space"


@pytest.fixture
def network(home: Path) -> NetworkSpace:
    found = resolve_space(TOY)
    assert isinstance(found, NetworkSpace)
    return found


def test_a_candidate_within_eps_after_recalibration_is_found_and_measured_on_both_sets(network: NetworkSpace) -> None:
    search = CascadeSearch(network, Quiet())
    candidate = tuple(len(stage.choices) - 1 for stage in network.stages)
    found = search.recalibrated(candidate)
    assert found.costs == network.counted.of(candidate)
    assert found.after is not None
    assert found.within(found.after)
    assert not found.within(found.after / 2)
    tried, best = search.smaller(found.after, reach=(4.0,), trials=27)
    assert best is tried[-1]
    assert all(not row.within(found.after) for row in tried[:-1])
    assert search.smaller(1e-12, reach=(1.5,), trials=3)[1] is None or network.space.teacher in [row.candidate for row in tried]


def test_the_command_goes_on_from_a_run_and_saves_the_model(network: NetworkSpace, tmp_path: Path) -> None:
    run = nas.search(TOY, 0.3, workdir=tmp_path, name="run", trials=10).run
    assert run is not None
    assert "give --trust" in command("cascade", str(run)).stderr
    assert "it has: 0.3" in command("cascade", str(run), "--eps", "0.4").stderr
    done = command("cascade", str(run), "--trust", "--json", "--quiet", "--trials", "27", "--threads", "1")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["divergence"] <= 0.3
    assert json.loads((run / "cascade-eps0.3" / "cascade.json").read_text()) == result
    again = command("cascade", str(run), "--trials", "27")  # nothing of the space is run, so no trust is asked for
    assert "recalibrated candidates, cheapest first" in again.stdout
    assert "found before; --new computes it again" in again.stderr
    assert json.loads(command("cascade", str(run), "--trials", "27", "--json").stdout) == result
    assert "give --trust" in command("cascade", str(run), "--trials", "27", "--new").stderr
    (run / "cascade-eps0.3" / "model.safetensors").write_bytes(b"")
    assert "give --trust" in command("cascade", str(run), "--trials", "27").stderr
    assert network.space.encode(result["candidate"])
    assert result["spent"]["n_trials"] > 0
    assert result["spent"]["n_recalibrated"] == len(result["tried"])


def test_all_that_must_be_said_is_asked_for_at_once(home: Path, tmp_path: Path) -> None:
    run = nas.search(TOY, (0.3, 0.5), workdir=tmp_path, name="run", trials=3).run
    asked = command("cascade", str(run)).stderr
    assert "choose one with --eps" in asked
    assert "give --trust" in asked


def test_the_bounds_and_the_cost_of_the_run_hold_for_what_is_made_of_it(home: Path, tmp_path: Path) -> None:
    run = nas.search(TOY, 0.3, workdir=tmp_path, name="run", trials=10, minimize="memory_mb", where="params<=60%").run
    assert run is not None
    found = json.loads(command("cascade", str(run), "--trust", "--json", "--trials", "27", "--threads", "1").stdout)
    assert found["params"] <= 0.6 * found["teacher"]["params"]
    assert found["memory_mb"] < found["teacher"]["memory_mb"]
    assert json.loads(command("show", str(run), "--json").stdout)["cascades"][0]["memory_mb"] == found["memory_mb"]


def test_where_nothing_is_within_eps_the_ways_out_are_those_that_are_left(home: Path, tmp_path: Path) -> None:
    run = nas.search(TOY, 1e-9, workdir=tmp_path, name="run", trials=3, where="params<=60%").run
    for trials, way_out in (("1", "give more --trials, or search with"), ("27", "none is likely to be, however many --trials: search with")):
        done = command("cascade", str(run), "--trust", "--trials", trials, "--threads", "1", "--quiet")
        assert done.returncode == 3
        assert f"nothing is near eps 1e-09; {way_out} a larger --eps or weaker --where" in done.stderr


def test_what_was_found_is_shown_chosen_reported_and_carded(home: Path, tmp_path: Path) -> None:
    run = nas.search(TOY, 0.3, workdir=tmp_path, name="run", trials=10).run
    assert run is not None
    found = json.loads(command("cascade", str(run), "--trust", "--json", "--trials", "27", "--threads", "1").stdout)
    (row,) = json.loads(command("show", str(run), "--json").stdout)["cascades"]
    assert row["params"] == found["params"]
    assert "recalibrated by `nas cascade`: saved in" in command("show", str(run)).stdout
    assert "cascade 0.3" in command("show", str(run)).stdout
    best = json.loads(command("best", str(run), "--json").stdout)
    assert best["params"] <= row["params"]
    assert "recalibrated" in (run / "report.html").read_text()
    card = (run / "cascade-eps0.3" / "README.md").read_text()
    assert "its blocks recalibrated on their real inputs" in card
    assert "search.optimizer" in card
    assert f"{found['divergence']:.3g}" in card


def test_a_damaged_result_of_a_cascade_is_named(home: Path, tmp_path: Path) -> None:
    run = nas.search(TOY, 0.3, workdir=tmp_path, name="run", trials=5).run
    assert run is not None
    (run / "cascade-eps0.3").mkdir()
    (run / "cascade-eps0.3" / "cascade.json").write_text('{"eps": 0.3}')
    assert "move the folder cascade-eps0.3 away, or give `nas cascade` again" in command("show", str(run)).stderr
    assert command("export", str(run), "--to", str(tmp_path / "model"), "--trust").returncode == 0
    assert "cascade-eps0.3" in command("doctor", str(run)).stdout
    assert command("report", str(run)).returncode == 0
    assert "A result of `nas cascade` could not be read" in (run / "report.html").read_text()


def test_a_run_that_cannot_be_written_is_refused_before_anything_is_computed(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = nas.search(TOY, 0.3, workdir=tmp_path, name="run", trials=3).run
    monkeypatch.setattr("os.access", lambda path, mode: not mode & os.W_OK)
    done = command("cascade", str(run), "--trust")
    assert done.returncode == 2
    assert "is not a writable folder" in done.stderr
