import errno
import fcntl
import itertools
import multiprocessing
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from nas.errors import DamagedFile, InputError, RunInUse, RunMismatch
from nas.record import Record
from nas.run_directory import RunDirectory, search_command
from nas.trial import Trial

TRIAL = Trial(0, (1, 0), {"params": 3.0}, 0.25, 0.01, 128, 0.5, attrs={"cached": True})
CONFIG = {"space": {"name": "demo"}, "search": {"eps": [0.1], "seed": 0}}


def test_what_was_added_is_read_back_equal(tmp_path: Path) -> None:
    failed = Trial(1, (0, 1), {"params": 1.0}, None, state="failed", reason="not finite")
    with Record(tmp_path / "study.db") as record:
        record.add(TRIAL)
        record.add(failed)
        record.set_fact("note", {"a": [1, None]})
    with Record(tmp_path / "study.db", read_only=True) as record:
        assert record.trials() == [TRIAL, failed]
        assert record.fact("note") == {"a": [1, None]}
        assert record.fact("nothing", 7) == 7


def test_the_command_and_the_folders_of_a_run_keep_every_digit_of_its_eps(tmp_path: Path) -> None:
    eps = [0.005, 0.0050000001, 0.1 + 0.2, 2.0]
    words = search_command(tmp_path / "run", {"space": {"name": "demo"}, "search": {"eps": eps, "delta": 1 / 3}}).split()
    assert [float(value) for option, value in itertools.pairwise(words) if option == "--eps"] == eps
    assert float(words[words.index("--delta") + 1]) == 1 / 3
    run = RunDirectory(tmp_path / "run")
    assert len({run.winner(value, several=True) for value in eps}) == len(eps)
    assert run.winner(0.005, several=True).name == "winner-eps0.005"


def test_runs_moved_aside_within_one_second_stay_apart(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    for _ in range(3):
        run.create(CONFIG)
        run.reset()
    assert len(list(tmp_path.iterdir())) == 3
    assert all((folder / "run.toml").is_file() for folder in tmp_path.iterdir())


def test_the_record_refuses_the_same_candidate_twice() -> None:
    record = Record()
    record.add(TRIAL)
    with pytest.raises(sqlite3.IntegrityError):
        record.add(Trial(1, (1, 0), {}, 0.1))


def test_a_file_that_is_no_record_is_reported_as_damaged(tmp_path: Path) -> None:
    (tmp_path / "study.db").write_bytes(b"this is not a database at all" * 100)
    with pytest.raises(DamagedFile, match="damaged"):
        Record(tmp_path / "study.db")


def test_a_run_made_with_another_configuration_is_refused_with_the_difference(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.create(CONFIG)
    run.create(CONFIG)
    run.record()
    with pytest.raises(RunMismatch, match=r"search\.seed: 0 there, 1 now"):
        run.create({**CONFIG, "search": {"eps": [0.1], "seed": 1}})


def test_a_run_that_stopped_before_its_record_takes_a_mended_configuration_unless_it_is_in_use(tmp_path: Path) -> None:
    run, mended = RunDirectory(tmp_path / "run"), {**CONFIG, "search": {"eps": [0.1], "seed": 1}}
    run.create(CONFIG)
    with run.lock(), pytest.raises(RunInUse):
        RunDirectory(tmp_path / "run").create(mended)
    run.create(mended)
    assert run.config() == mended
    (run.path / "winner").mkdir()
    with pytest.raises(RunMismatch):
        run.create(CONFIG)


def test_reset_moves_the_old_run_aside(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.create(CONFIG)
    run.reset()
    assert not run.path.exists()
    assert len(list(tmp_path.glob("run.old-*/run.toml"))) == 1


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is not a run directory \(no run.toml, no study.db\)"):
        RunDirectory.open(tmp_path)


def _try_to_lock(path: Path, answers: "multiprocessing.Queue[str]") -> None:
    try:
        with RunDirectory(path).lock():
            answers.put("locked")
    except RunInUse as error:
        answers.put(str(error))


def test_a_second_writer_is_told_who_holds_the_run(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    context = multiprocessing.get_context("spawn")
    answers: multiprocessing.Queue[str] = context.Queue()
    with run.lock():
        process = context.Process(target=_try_to_lock, args=(tmp_path, answers))
        process.start()
        assert "is in use by pid" in answers.get(timeout=300)
        process.join()
    process = context.Process(target=_try_to_lock, args=(tmp_path, answers))
    process.start()
    assert answers.get(timeout=300) == "locked"
    process.join()


def test_a_gap_a_changed_fact_and_an_unknown_state_are_named() -> None:
    with Record() as record:
        record.add(Trial(1, (0,), {}, 0.1))
        with pytest.raises(DamagedFile, match="has no trial 0"):
            record.trials()
        assert record.readable() == ([Trial(1, (0,), {}, 0.1)], ["record :memory:: trial 0 is missing"])
        record.set_fact("note", 1)
        record._db.execute("UPDATE facts SET value = '2'")
        with pytest.raises(DamagedFile, match=r"fact 'note' is damaged .its checksum differs"):
            record.fact("note")
    with Record() as record:
        record._db.execute("INSERT INTO trials VALUES (0, '[0]', '{}', 0.1, 0.0, 0, 0.0, 'odd', '', '{}', '')")
        with pytest.raises(DamagedFile, match="state must be complete or failed, got 'odd'"):
            record.trials()


def test_a_database_of_another_form_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "study.db") as other:
        other.execute("CREATE TABLE trials (number INTEGER PRIMARY KEY, candidate TEXT)")
    with pytest.raises(DamagedFile, match="its table 'trials' has 2 columns"):
        Record(tmp_path / "study.db")


def test_a_record_whose_folder_is_not_there_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot open the record"):
        Record(tmp_path / "nowhere" / "study.db")


def test_a_run_whose_lock_cannot_be_made_says_so(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file where the folder should be")
    with pytest.raises(InputError, match=r"cannot write to .*run: .*; choose another --workdir"), RunDirectory(tmp_path / "run").lock():
        pass


def test_a_file_system_without_locks_is_not_taken_for_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(InputError, match=r"cannot lock .*: No locks available; choose a --workdir on a local disk"), RunDirectory(tmp_path).lock():
        pass


def test_a_number_far_beyond_the_others_is_a_gap_and_not_walked_to() -> None:
    record = Record()
    far = replace(TRIAL, number=1 << 60, candidate=(0, 2))
    for trial in (TRIAL, far):
        record.add(trial)
    trials, lost = record.readable()
    assert trials == [TRIAL, far]
    assert [line.partition(": ")[2] for line in lost] == [f"trials 1 to {(1 << 60) - 1} are missing"]
