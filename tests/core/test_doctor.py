"""`nas doctor`: finds what is damaged, keeps what can be kept, removes nothing."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from nas.blocks.store import BlockRecord, BlockStore, block_key
from nas.doctor import Finding, examine
from nas.errors import RunInUse
from nas.files import write_manifest
from nas.progress import Quiet
from nas.report import ReportWriter
from nas.run_directory import RunDirectory
from nas.trial import Trial
from tests.core.test_cli import nas

CONFIG: dict[str, dict[str, Any]] = {"space": {"name": "demo"}, "search": {"eps": [0.1]}}
KEY = block_key(stage="a")
N = 200


@pytest.fixture
def run(tmp_path: Path, home: Path) -> RunDirectory:
    """A run of 200 trials with a winner and a block."""
    run = RunDirectory(tmp_path / "run")
    run.create(CONFIG)
    with run.record() as record:
        record.set_fact("config", run.config())
        record.set_fact("blocks", {"a/small": KEY})
        record.set_fact("saved", {"winner": [1, 2]})
        for number in range(N):
            record.add(Trial(number, (number // 15, number % 15), {"params": 3.0}, 0.25 + number, attrs={"cached": True}))
    (run.path / "winner").mkdir()
    (run.path / "winner/weights").write_bytes(b"0123456789")
    write_manifest(run.path / "winner")
    BlockStore(home / "blocks").put(KEY, BlockRecord("a", "small", {}, 0.1), {"w": torch.ones(3)})
    return run


def states(findings: list[Finding]) -> dict[str, str]:
    return {finding.what: finding.state for finding in findings}


def test_a_sound_run_is_found_sound_and_not_changed(run: RunDirectory, home: Path) -> None:
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    assert states(examine(run, home / "blocks")) == {"record": "ok", "run.toml": "ok", "winner": "ok", "blocks": "ok"}
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before
    assert nas("doctor", str(run.path)).returncode == 0


def test_one_damaged_row_costs_that_row_and_the_rest_is_kept(run: RunDirectory, home: Path) -> None:
    with run.record() as record:
        record._db.execute("UPDATE trials SET divergence = 0.0 WHERE number = 77")
    done = nas("doctor", str(run.path), "--json")
    assert done.returncode == 2
    assert "trial 77 is damaged" in done.stdout
    assert nas("doctor", str(run.path), "--repair").returncode == 0
    with run.record(read_only=True) as record:
        kept = record.trials()
        assert record.fact("blocks") == {"a/small": KEY}
    assert len(kept) == N - 1
    assert [trial.candidate for trial in kept] == [(n // 15, n % 15) for n in range(N) if n != 77]
    assert len(list(run.path.glob("study.db.damaged-*"))) == 1
    assert nas("doctor", str(run.path)).returncode == 0


def test_a_damaged_page_in_the_middle_costs_its_rows_only(run: RunDirectory, home: Path) -> None:
    path = run.path / "study.db"
    content = bytearray(path.read_bytes())
    at = content.index(b'{"params": 3.0}', len(content) // 3) // 4096 * 4096
    content[at : at + 8] = bytes(random.Random(0).randbytes(8))
    path.write_bytes(content)
    (run.path / "study.db-wal").unlink(missing_ok=True)
    assert states(examine(run, home / "blocks"))["record"] == "damaged"
    assert states(examine(run, home / "blocks", repair=True))["record"] == "repaired"
    with run.record(read_only=True) as record:
        assert N - 60 <= len(record.trials()) < N
    assert states(examine(run, home / "blocks"))["record"] == "ok"


@pytest.mark.parametrize("content", [b"", b"not a database at all" * 500, b"SQLite format 3\0" + b"\1" * 5000], ids=["empty", "text", "header"])
def test_a_record_that_is_none_is_moved_aside(run: RunDirectory, home: Path, content: bytes) -> None:
    (run.path / "study.db").write_bytes(content)
    (run.path / "study.db-wal").unlink(missing_ok=True)
    findings = examine(run, home / "blocks", repair=True)
    with run.record(read_only=True) as record:
        assert record.trials() == []
    if content:
        assert states(findings)["record"] == "repaired"
        (aside,) = run.path.glob("study.db.damaged-*")
        assert aside.read_bytes() == content


def test_winners_that_no_trial_is_left_of_are_told_also_after_a_repair(run: RunDirectory) -> None:
    (run.path / "study.db").write_bytes(b"not a database at all" * 500)
    (run.path / "study.db-wal").unlink(missing_ok=True)
    for more in ((), ("--repair",), ()):
        done = nas("doctor", str(run.path), *more)
        said = " ".join(done.stdout.split())
        assert done.returncode == 2
        assert "no trial can be read, so that nothing tells how winner came about" in said
        assert "RUN" not in said
    assert (run.path / "winner").is_dir()


def test_a_repair_keeps_the_report_which_may_be_the_last_copy_of_the_trials(run: RunDirectory, home: Path) -> None:
    run.report.write_text("all trials")
    (run.path / "study.db").write_bytes(b"not a database at all" * 500)
    (run.path / "study.db-wal").unlink(missing_ok=True)
    (repaired,) = (f for f in examine(run, home / "blocks", repair=True) if f.state == "repaired")
    assert nas("report", str(run.path)).returncode == 0
    (kept,) = run.path.glob("report.before-repair-*.html")
    assert kept.read_text() == "all trials"
    assert f"its last report in {kept.name}" in repaired.detail


def test_a_damaged_configuration_is_written_again_from_the_record(run: RunDirectory, home: Path) -> None:
    before = run.config()
    (run.path / "run.toml").write_bytes(b"[space\nname")
    assert states(examine(run, home / "blocks"))["run.toml"] == "damaged"
    assert states(examine(run, home / "blocks", repair=True))["run.toml"] == "repaired"
    assert run.config() == before
    assert len(list(run.path.glob("run.toml.damaged-*"))) == 1


def test_a_changed_configuration_is_told(run: RunDirectory, home: Path) -> None:
    text = (run.path / "run.toml").read_text()
    (run.path / "run.toml").write_text(text.replace("0.1", "0.2"))
    (finding,) = (f for f in examine(run, home / "blocks") if f.what == "run.toml")
    assert finding.state == "damaged"
    assert "differs from the record's copy" in finding.detail


def test_a_damaged_winner_and_a_damaged_block_are_moved_aside(run: RunDirectory, home: Path) -> None:
    (run.path / "winner/weights").write_bytes(b"0123456780")
    block = home / "blocks" / KEY[:2] / KEY / "block.safetensors"
    block.write_bytes(block.read_bytes()[:-1] + b"\7")
    found = states(examine(run, home / "blocks"))
    assert found["winner"] == "damaged"
    assert found["block a/small"] == "damaged"
    found = states(examine(run, home / "blocks", repair=True))
    assert found["winner"] == "repaired"
    assert found["block a/small"] == "repaired"
    assert states(examine(run, home / "blocks")) == {"record": "ok", "run.toml": "ok", "winner": "absent", "blocks": "absent"}
    assert (next(run.path.glob("winner.damaged-*")) / "weights").read_bytes() == b"0123456780"


def test_a_run_in_use_is_looked_at_but_not_repaired(run: RunDirectory, home: Path) -> None:
    with run.lock():
        assert states(examine(run, home / "blocks"))["record"] == "ok"
        with pytest.raises(RunInUse):
            examine(run, home / "blocks", repair=True)


def test_the_json_of_doctor_is_one_object(run: RunDirectory) -> None:
    found = json.loads(nas("doctor", str(run.path), "--json").stdout)
    assert found["sound"] is True
    assert {finding["what"] for finding in found["findings"]} == {"record", "run.toml", "winner", "blocks"}


def test_changed_facts_and_a_winner_that_nothing_vouches_for_are_told(run: RunDirectory, home: Path) -> None:
    with run.record() as record:
        record._db.execute("UPDATE facts SET value = '{}' WHERE name = 'config'")
    (run.path / "winner" / "manifest.json").write_text("{")
    found = {finding.what: finding for finding in examine(run, home / "blocks")}
    assert found["record"].state == "damaged"
    assert found["winner"].state == "damaged"
    assert "is not JSON" in found["winner"].detail
    (run.path / "winner" / "manifest.json").unlink()
    winner = {finding.what: finding for finding in examine(run, home / "blocks")}["winner"]
    assert winner.state == "damaged"
    assert "no manifest.json that vouches for it" in winner.detail
    assert "--repair` moves it aside, the same `nas search` saves it again" in winner.detail
    assert states(examine(run, home / "blocks", repair=True))["winner"] == "repaired"
    assert states(examine(run, home / "blocks"))["winner"] == "absent"


def test_a_report_of_a_damaged_run_says_what_is_lost_and_one_that_cannot_be_written_stops_nothing(run: RunDirectory, tmp_path: Path) -> None:
    with run.record() as record:
        record._db.execute("UPDATE facts SET value = '{}' WHERE name = 'blocks'")
    assert nas("report", str(run.path), "--to", str(tmp_path / "r.html")).returncode == 0
    assert "Parts of the record could not be read" in (tmp_path / "r.html").read_text()
    done = nas("report", str(run.path), "--to", str(tmp_path / "r.html" / "x.html"))
    assert done.returncode == 2
    assert "give another place with --to" in done.stderr
    notes: list[str] = []

    class Listener(Quiet):
        def note(self, text: str) -> None:
            notes.append(text)

    writer = ReportWriter(tmp_path / "nowhere", Listener())
    writer.end(None)
    writer.end(None)
    assert len(notes) == 1
    assert "the search goes on" in notes[0]
