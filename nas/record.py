"""The record of a run: one SQLite file of trials and facts that survives kill -9."""

import hashlib
import json
import sqlite3
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nas.errors import DamagedFile, InputError, NasError
from nas.files import Form, check_form, parse_json
from nas.snapshot import copy_database
from nas.trial import Trial

_SCHEMA = """
CREATE TABLE IF NOT EXISTS trials (
    number INTEGER PRIMARY KEY, candidate TEXT NOT NULL UNIQUE, costs TEXT NOT NULL, divergence REAL, stderr REAL NOT NULL,
    n_samples INTEGER NOT NULL, seconds REAL NOT NULL, state TEXT NOT NULL, reason TEXT NOT NULL, attrs TEXT NOT NULL,
    checksum TEXT NOT NULL DEFAULT ''
);
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL, checksum TEXT NOT NULL DEFAULT '');
"""

_BUSY_S = 60.0  # how long a lock that somebody else holds on the file (a backup, say) is waited for
_GIVE_UP = 200  # numbers in a row that cannot be read, after which the table is taken to end

_NUMBER = int | float
_TRIAL: Form = {
    "candidate": [int], "costs": {str: _NUMBER}, "divergence": _NUMBER | None, "stderr": _NUMBER, "n_samples": int, "seconds": _NUMBER,
    "state": str, "reason": str, "attrs": {str: object},
}  # fmt: skip
_CHOICE: Form = {"name": str, "calibration_error": _NUMBER | None, "expected_loss?": _NUMBER | None}
_TABLE: Form = {"space?": str, "stages": [{"name": str, "choices": [_CHOICE]}], "fixed": {str: _NUMBER}}
_WINNER: Form = {
    "eps": _NUMBER, "feasible": bool, "candidate": dict | None, "divergence": _NUMBER | None, "stderr": _NUMBER | None, "n_samples": int,
    "heldout_divergence": _NUMBER | None, "path": str | None, "rejected?": [{"heldout_divergence": _NUMBER | None}],
}  # fmt: skip
_SECONDS: Form = {"calibrate": _NUMBER, "measure": _NUMBER, "propose": _NUMBER, "total": _NUMBER}
_RESULT: Form = {
    "space": str, "teacher": {str: _NUMBER}, "winners": [_WINNER], "n_trials": int, "n_measured": int, "seconds": _SECONDS,
    "stopped": str, "statements?": [str], "run": str | None,
}  # fmt: skip
_FACTS: dict[str, Form] = {
    "table": _TABLE, "result": _RESULT, "seconds": {"calibrate": _NUMBER, "total": _NUMBER}, "seconds_proposing": _NUMBER, "verdicts": {str: dict},
    "saved": {str: [int]}, "curves": {str: [[_NUMBER]]}, "by_level": {str: {str: _NUMBER}}, "blocks": {str: str}, "config": {str: dict},
}  # fmt: skip


class Record:
    """Trials in order and named facts (JSON values) of one run, in one SQLite file; `:memory:` keeps them for the process only.

    A `read_only` record is a copy taken at that moment: reading neither waits for the writer, nor blocks it, nor changes a file.

    Raises:
        InputError: the file cannot be opened or written.
        DamagedFile: it is not a record.
    """

    def __init__(self, path: Path | str = ":memory:", *, read_only: bool = False) -> None:
        self.path = path
        self._doctor = f"nas doctor {Path(path).parent}"  # a record lies in its run
        self._copy = tempfile.TemporaryDirectory(prefix="nas-record-") if read_only else None
        try:
            self._db = sqlite3.connect(copy_database(Path(path), Path(self._copy.name)) if self._copy else path, timeout=_BUSY_S, isolation_level=None)
            self._db.text_factory = lambda content: content.decode("utf-8", "replace")  # what is not UTF-8 fails its checksum
            self._db.execute("PRAGMA trusted_schema=OFF")  # the file may come from somebody else
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            _check_schema(self._db)
            self._db.executescript(_SCHEMA)
            _add_checksums(self._db)
        except sqlite3.OperationalError as error:
            self.close()
            raise InputError(f"cannot open the record {path}: {error}") from error
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # the latter while it words the former
            self.close()
            raise DamagedFile(f"record {path} is damaged: {error}; `{self._doctor} --repair` saves what can be read") from error
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Record":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the use of the file; nothing is lost without it."""
        if hasattr(self, "_db"):
            self._db.close()
        if self._copy is not None:
            self._copy.cleanup()

    def trials(self) -> list[Trial]:
        """All trials by number.

        Raises:
            DamagedFile: one of them is not what was written; names it.
        """
        trials = [self._trial(row) for row in self._read("SELECT * FROM trials ORDER BY number")]
        for number, trial in enumerate(trials):
            if trial.number != number:
                raise DamagedFile(f"record {self.path} has no trial {number}; `{self._doctor} --repair` closes the gap")
        return trials

    def readable(self) -> tuple[list[Trial], list[str]]:
        """The trials that can be read, one by one, and a line for each, or each gap, that cannot."""
        trials: list[Trial] = []
        lost: dict[int, str] = {}
        last, following = self._last(), 0
        while last is None or following <= last:
            number, following = following, following + 1
            try:
                rows = self._read("SELECT * FROM trials WHERE number = ?", (number,))
                if not rows:
                    following = self._following(number)
                    missing = f"trial {number} is" if following == number + 1 else f"trials {number} to {following - 1} are"
                    raise DamagedFile(f"record {self.path}: {missing} missing")
                trials.append(self._trial(rows[0]))
            except NasError as error:
                lost[number] = str(error)
            if last is None and number - (trials[-1].number if trials else -1) > _GIVE_UP:
                break
        if last is None:  # the end of the table cannot be read: how many trials it held is not known
            end = trials[-1].number if trials else -1
            lost = {number: line for number, line in lost.items() if number <= end + 1}
        return trials, list(lost.values())

    def add(self, trial: Trial) -> None:
        """Appends a trial; it is on disk when this returns."""
        row = (
            trial.number, json.dumps(trial.candidate), json.dumps(dict(trial.costs)), trial.divergence, float(trial.stderr),
            trial.n_samples, float(trial.seconds), trial.state, trial.reason, json.dumps(dict(trial.attrs)),
        )  # fmt: skip
        self._write("INSERT INTO trials VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", (*row, _checksum(row)))

    def facts(self) -> list[str]:
        """Names of the facts."""
        return [str(name) for (name,) in self._read("SELECT name FROM facts ORDER BY name")]

    def fact(self, name: str, default: Any = None) -> Any:
        """A named JSON value.

        Raises:
            DamagedFile: it is not what was written.
        """
        rows = self._read("SELECT value, checksum FROM facts WHERE name = ?", (name,))
        if not rows:
            return default
        value, checksum = rows[0]
        where = f"record {self.path}: fact '{name}'"
        if checksum and checksum != _checksum((name, value)):
            raise DamagedFile(f"{where} is damaged (its checksum differs); `{self._doctor} --repair` removes it, the same search makes it again")
        return parse_json(check_form(value, str, where), where, _FACTS.get(name, object))

    def set_fact(self, name: str, value: Any) -> None:
        """Sets a named JSON value; it is on disk when this returns."""
        text = json.dumps(value)
        self._write("INSERT OR REPLACE INTO facts VALUES (?, ?, ?)", (name, text, _checksum((name, text))))

    def faults(self) -> list[str]:
        """What SQLite itself finds wrong with the file; empty when it is sound."""
        try:
            return [str(line) for (line,) in self._db.execute("PRAGMA integrity_check(20)") if line != "ok"]
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            return [str(error)]

    def _last(self) -> int | None:
        """The highest number, -1 without trials; None where it cannot be read."""
        try:
            (last,) = self._read("SELECT max(number) FROM trials")[0]
        except NasError:
            return None
        return -1 if last is None else int(last)

    def _following(self, number: int) -> int:
        """The next number that there is, the one after where there is none: a damaged number may leave a gap that nobody can walk."""
        (found,) = self._read("SELECT min(number) FROM trials WHERE number > ?", (number,))[0]
        return number + 1 if found is None else int(found)

    def _trial(self, row: tuple[Any, ...]) -> Trial:
        where = f"record {self.path}: trial {row[0]}"
        if row[-1] and row[-1] != _checksum(row[:-1]):
            raise DamagedFile(f"{where} is damaged (its checksum differs); `{self._doctor} --repair` keeps the others")
        number, candidate, costs, divergence, stderr, n_samples, seconds, state, reason, attrs, _ = row
        parsed = {name: parse_json(check_form(text, str, where), where) for name, text in (("candidate", candidate), ("costs", costs), ("attrs", attrs))}
        values = {**parsed, "divergence": divergence, "stderr": stderr, "n_samples": n_samples, "seconds": seconds, "state": state, "reason": reason}
        check_form(values, _TRIAL, where)
        if state not in ("complete", "failed"):
            raise DamagedFile(f"{where}: state must be complete or failed, got '{state[:40]}'")
        return Trial(number, **{**values, "candidate": tuple(parsed["candidate"])})

    def _read(self, query: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        try:
            return self._db.execute(query, values).fetchall()
        except sqlite3.OperationalError as error:
            raise InputError(f"cannot read the record {self.path}: {error}") from error
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            raise DamagedFile(f"record {self.path} is damaged: {error}; `{self._doctor} --repair` saves what can be read") from error

    def _write(self, statement: str, row: tuple[Any, ...]) -> None:
        try:
            self._db.execute(statement, row)
        except sqlite3.IntegrityError:
            raise
        except sqlite3.DatabaseError as error:
            raise InputError(f"cannot write to the record {self.path}: {error}; nothing recorded before is lost, the same command goes on") from error


def _checksum(row: Iterable[Any]) -> str:
    """Of the values as SQLite gives them back: some versions forget the sign of -0.0."""
    values = [value + 0.0 if isinstance(value, float) else value for value in row]
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


def _check_schema(db: sqlite3.Connection) -> None:
    """Raises unless the file holds nothing but plain tables and indices: a view or a trigger would be somebody else's code."""
    for kind, name in db.execute("SELECT type, name FROM sqlite_master WHERE type NOT IN ('table', 'index')"):
        raise sqlite3.DatabaseError(f"it has a {kind} '{name}', which no record has")


def _add_checksums(db: sqlite3.Connection) -> None:
    """Gives the tables of a record from before checksums an empty one."""
    for table, columns in (("trials", 10), ("facts", 2)):
        found = db.execute(f"SELECT count(*) FROM pragma_table_info('{table}')").fetchone()[0]
        if found == columns:
            db.execute(f"ALTER TABLE {table} ADD COLUMN checksum TEXT NOT NULL DEFAULT ''")
        elif found != columns + 1:
            raise sqlite3.DatabaseError(f"its table '{table}' has {found} columns, a record's has {columns + 1}")
