"""Reading a record changes nothing, waits for nobody, and works where nothing may be written."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from nas.errors import DamagedFile, InputError
from nas.record import Record
from nas.run_directory import RunDirectory
from nas.trial import Trial

CONFIG = {"space": {"name": "demo"}, "search": {"eps": [0.1]}}

CHOICES = [{"name": name, "params": 1, "calibration_error": None} for name in ("teacher", "c1", "c2", "c3")]
TABLE = {"stages": [{"name": "a", "choices": CHOICES}, {"name": "b", "choices": CHOICES[:1]}], "fixed": {"params": 0}}


def trial(number: int) -> Trial:
    return Trial(number, (number, 0), {"params": 3.0}, 0.25, 0.01, 128, 0.5)


def make_run(path: Path, n: int = 3) -> RunDirectory:
    run = RunDirectory(path)
    run.create(CONFIG)
    with run.record() as record:
        record.set_fact("table", TABLE)
        for number in range(n):
            record.add(trial(number))
    return run


def state(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


def test_reading_a_run_changes_no_file_of_it(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    before = state(run.path)
    with run.record(read_only=True) as record:
        assert len(record.trials()) == 3
    assert state(run.path) == before


def test_reading_while_the_writer_lives_changes_no_file_and_sees_all_that_is_acknowledged(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 0)
    with run.record() as writer:
        for number in range(20):
            writer.add(trial(number))
            before = state(run.path)
            with run.record(read_only=True) as reader:
                assert len(reader.trials()) == number + 1
            assert state(run.path) == before


def test_a_reader_never_sees_a_broken_record_while_a_writer_appends_and_writes_its_log_back(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 0)
    seen: list[int] = []

    def write() -> None:
        with run.record() as record:
            record._db.execute("PRAGMA wal_autocheckpoint=3")  # write back all the time
            for number in range(200):
                record.add(trial(number))

    writer = threading.Thread(target=write)
    writer.start()
    while writer.is_alive():
        with run.record(read_only=True) as record:
            seen.append(len(record.trials()))
            assert record.faults() == []
    writer.join()
    assert seen == sorted(seen)
    with run.record(read_only=True) as record:
        assert len(record.trials()) == 200


@pytest.mark.parametrize("killed", [False, True], ids=["closed", "killed"])
def test_a_run_on_a_read_only_file_system_is_shown(tmp_path: Path, killed: bool) -> None:
    run = make_run(tmp_path / "run")
    if killed:  # a log that was never written back stands beside the record
        code = (
            "import os, sys; from pathlib import Path; from nas.record import Record; from nas.trial import Trial\n"
            "record = Record(Path(sys.argv[1])); record.add(Trial(3, (3, 0), {'params': 3.0}, 0.25)); os.kill(os.getpid(), 9)"
        )
        subprocess.run([sys.executable, "-c", code, str(run.path / "study.db")], check=False)
        assert (run.path / "study.db-wal").stat().st_size > 0
    mount = 'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && ! touch "$1/x" 2>/dev/null || exit 77; '
    show = '"$0" -c "from nas.cli.app import main; main()" show "$1" --json'
    shown = subprocess.run(["unshare", "-m", "sh", "-c", mount + show, sys.executable, str(run.path)], capture_output=True, text=True, check=False)
    if shown.returncode == 77 or "unshare failed" in shown.stderr:
        pytest.skip("may not mount")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.count('"number"') == 3 + killed


def test_a_log_cut_at_any_byte_of_its_last_record_loses_that_record_at_most(tmp_path: Path) -> None:
    _cut_everywhere(tmp_path, step=301)


@pytest.mark.slow
def test_a_log_cut_at_every_byte_of_its_last_record_loses_that_record_at_most(tmp_path: Path) -> None:
    _cut_everywhere(tmp_path, step=1)


def _cut_everywhere(folder: Path, step: int) -> None:
    run = make_run(folder / "run", 0)
    with run.record() as record:
        record._db.execute("PRAGMA wal_autocheckpoint=0")
        for number in range(3):
            record.add(trial(number))
        database = (run.path / "study.db").read_bytes()
        before = (run.path / "study.db-wal").stat().st_size
        record.add(trial(3))
        log = (run.path / "study.db-wal").read_bytes()
    copy = folder / "copy"
    copy.mkdir()
    counts = []
    for length in [*range(before, len(log), step), len(log)]:
        (copy / "study.db").write_bytes(database)
        (copy / "study.db-wal").write_bytes(log[:length])
        with Record(copy / "study.db", read_only=True) as cut:
            counts.append(len(cut.trials()))
    assert set(counts[:-1]) == {3}
    assert counts[-1] == 4


def test_a_flipped_byte_in_a_row_is_never_read_as_a_result(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    path = run.path / "study.db"
    content = path.read_bytes()
    at = content.index(b'{"params": 3.0}')
    path.write_bytes(content[:at] + b'{"params": 9.0}' + content[at + 15 :])
    with run.record(read_only=True) as record, pytest.raises(DamagedFile, match=r"trial \d is damaged .its checksum differs"):
        record.trials()


def test_a_record_that_carries_a_trigger_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with run.record() as record:
        record._db.execute("CREATE TRIGGER t AFTER INSERT ON trials BEGIN DELETE FROM facts; END")
    with pytest.raises(DamagedFile, match="has a trigger 't'"):
        run.record()


def test_a_record_from_before_checksums_is_read_and_continued(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with run.record() as record:
        record._db.execute("ALTER TABLE trials DROP COLUMN checksum")
    with run.record(read_only=True) as record:
        assert len(record.trials()) == 3
    with run.record() as record:
        record.add(trial(3))
        assert record.trials()[3] == trial(3)


def test_a_record_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read the record .*study\.db: No such file"):
        Record(tmp_path / "study.db", read_only=True)


def test_a_lock_held_for_ever_is_one_clear_line_and_nothing_is_lost(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with run.record() as other, run.record() as record:
        other._db.execute("BEGIN IMMEDIATE")
        record._db.execute("PRAGMA busy_timeout=100")
        with pytest.raises(InputError, match=r"cannot write to the record .*locked; nothing recorded before is lost"):
            record.add(trial(3))
        other._db.execute("COMMIT")
        record.add(trial(3))
    with run.record(read_only=True) as reader:
        assert len(reader.trials()) == 4


def test_a_reader_does_not_wait_for_a_held_lock(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with run.record() as other:
        other._db.execute("BEGIN EXCLUSIVE")
        with run.record(read_only=True) as record:
            assert len(record.trials()) == 3
