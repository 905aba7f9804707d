"""The record of a run: its directory, its configuration, and one SQLite table of trials that survives kill -9."""

import fcntl
import json
import os
import shutil
import socket
import sqlite3
import time
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nas.errors import DamagedFile, InputError, RunInUse, RunMismatch
from nas.trial import Trial

_SCHEMA = """
CREATE TABLE IF NOT EXISTS trials (
    number INTEGER PRIMARY KEY, candidate TEXT NOT NULL UNIQUE, costs TEXT NOT NULL, divergence REAL, stderr REAL NOT NULL,
    n_samples INTEGER NOT NULL, seconds REAL NOT NULL, state TEXT NOT NULL, reason TEXT NOT NULL, attrs TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


class Record:
    """Trials in order and named facts (JSON values) of one run, in one SQLite file; `:memory:` keeps them for the process only.

    Raises:
        InputError: the file cannot be opened or written.
        DamagedFile: it is not a record.
    """

    def __init__(self, path: Path | str = ":memory:", *, read_only: bool = False) -> None:
        self._path = path
        try:
            if read_only:
                self._db = sqlite3.connect(f"{Path(path).resolve().as_uri()}?mode=ro", uri=True, timeout=60, isolation_level=None)
            else:
                self._db = sqlite3.connect(path, timeout=60, isolation_level=None)
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA synchronous=FULL")
                self._db.executescript(_SCHEMA)
            self._db.execute("SELECT count(*) FROM trials").fetchone()
        except sqlite3.OperationalError as error:
            raise InputError(f"cannot open the record {path}: {error}") from error
        except sqlite3.DatabaseError as error:
            raise DamagedFile(f"record {path} is damaged: {error}") from error

    def __enter__(self) -> "Record":
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def trials(self) -> list[Trial]:
        """All trials by number."""
        rows = self._db.execute("SELECT * FROM trials ORDER BY number").fetchall()
        try:
            return [
                Trial(number, tuple(json.loads(candidate)), json.loads(costs), divergence, stderr, n_samples, seconds, state, reason, json.loads(attrs))
                for number, candidate, costs, divergence, stderr, n_samples, seconds, state, reason, attrs in rows
            ]
        except (ValueError, TypeError) as error:
            raise DamagedFile(f"record {self._path} holds a trial that cannot be read: {error}") from error

    def add(self, trial: Trial) -> None:
        """Appends a trial; it is on disk when this returns."""
        row = (
            trial.number, json.dumps(trial.candidate), json.dumps(dict(trial.costs)), trial.divergence, trial.stderr,
            trial.n_samples, trial.seconds, trial.state, trial.reason, json.dumps(dict(trial.attrs)),
        )  # fmt: skip
        self._write("INSERT INTO trials VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)

    def fact(self, name: str, default: Any = None) -> Any:
        """A named JSON value."""
        row = self._db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return default if row is None else json.loads(row[0])

    def facts(self) -> dict[str, Any]:
        """All named JSON values."""
        return {name: json.loads(value) for name, value in self._db.execute("SELECT name, value FROM facts").fetchall()}

    def set_fact(self, name: str, value: Any) -> None:
        """Sets a named JSON value; it is on disk when this returns."""
        self._write("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, json.dumps(value)))

    def _write(self, statement: str, row: tuple[Any, ...]) -> None:
        try:
            self._db.execute(statement, row)
        except sqlite3.OperationalError as error:
            raise InputError(f"cannot write to the record {self._path}: {error}; nothing recorded before is lost") from error


class RunDirectory:
    """A folder with `run.toml` (configuration and fingerprints), `study.db` (the record) and `winner*/` (models)."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def open(cls, path: Path) -> "RunDirectory":
        """An existing run; a folder without `run.toml` and `study.db` is an error."""
        run = cls(path)
        for name in ("run.toml", "study.db"):
            if not (path / name).is_file():
                raise InputError(f"'{path}' is not a run directory (no {name}); give a folder that `nas search` made, such as runs/NAME")
        return run

    def create(self, config: Mapping[str, Mapping[str, Any]]) -> None:
        """Makes the folder and writes `run.toml`, or checks that the run already there has the same configuration.

        Raises:
            InputError: the folder cannot be written.
            RunMismatch: a run with another configuration stands there.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not os.access(self.path, os.W_OK):
                raise PermissionError(13, "permission denied")
            if not (self.path / "run.toml").exists():
                draft = self.path / f".run.toml.{os.getpid()}"
                draft.write_text(to_toml(config), encoding="utf-8")
                draft.rename(self.path / "run.toml")
        except OSError as error:
            raise InputError(f"cannot write to {self.path}: {error.strerror}; choose another --workdir") from error
        self._check_same(config)

    def config(self) -> dict[str, Any]:
        """The content of `run.toml`."""
        try:
            return tomllib.loads((self.path / "run.toml").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DamagedFile(f"{self.path / 'run.toml'} cannot be read: {error}") from error

    def record(self, *, read_only: bool = False) -> Record:
        """The record of trials."""
        return Record(self.path / "study.db", read_only=read_only)

    def reset(self) -> None:
        """Moves what is there aside (suffix `.old-TIME`), so that a new run can start; nothing is deleted."""
        if self.path.exists():
            shutil.move(self.path, self.path.with_name(f"{self.path.name}.old-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"))

    def winner(self, eps: float, several: bool) -> Path:
        """Where the winner of an eps is saved."""
        return self.path / (f"winner-eps{eps:g}" if several else "winner")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the run for one writer; the operating system releases it when the process dies.

        Raises:
            RunInUse: another live process holds it.
        """
        with (self.path / ".lock").open("a+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.seek(0)
                raise RunInUse(f"run '{self.path}' is in use by {file.read().strip() or 'another process'}; wait for it or stop it") from None
            file.truncate(0)
            file.write(f"pid {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
            file.flush()
            yield

    def _check_same(self, config: Mapping[str, Mapping[str, Any]]) -> None:
        found, wanted = self.config(), tomllib.loads(to_toml(config))
        differing = [
            f"{section}.{key}: {found.get(section, {}).get(key)!r} there, {value!r} now"
            for section, values in wanted.items()
            if section != "versions"
            for key, value in values.items()
            if found.get(section, {}).get(key) != value
        ]
        if differing:
            raise RunMismatch(f"run '{self.path}' was made with another configuration ({'; '.join(differing)}); use --new or another --name")


def to_toml(config: Mapping[str, Mapping[str, Any]]) -> str:
    """Sections of strings, numbers, booleans and lists of them as TOML; None values are left out.

    >>> print(to_toml({"run": {"seed": 0, "eps": [0.005], "space": "a"}}), end="")
    [run]
    seed = 0
    eps = [0.005]
    space = "a"
    """
    lines = []
    for section, values in config.items():
        lines.append(f"[{section}]")
        lines += [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in values.items() if value is not None]
        lines.append("")
    return "\n".join(lines)
