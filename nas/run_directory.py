"""The directory of a run: its configuration, its record, its winners."""

import fcntl
import glob
import json
import os
import re
import shlex
import shutil
import socket
import time
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from nas.amounts import exact
from nas.errors import DamagedFile, InputError, RunInUse, RunMismatch
from nas.files import Form, check_form, read_toml, write_whole
from nas.nearby import no_run
from nas.record import Record

_NUMBER = int | float
_CONFIG: Form = {
    "space": {"name": str},
    "search": {"eps": [_NUMBER], "minimize?": str, "where?": [str]},
    "asked?": {"trials?": int},
    "source?": {"file": str},
    "fingerprints?": dict,
}


def check_config(config: Any, where: str) -> dict[str, Any]:
    """The configuration itself if it has the form of one, else `DamagedFile` that names the place."""
    found: dict[str, Any] = check_form(config, _CONFIG, where)
    return found


class RunDirectory:
    """A folder with `run.toml` (configuration and fingerprints), `study.db` (the record) and `winner*/` (models)."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def open(cls, path: Path, *, to_repair: bool = False) -> "RunDirectory":
        """An existing run that has a record; a lost `run.toml` can be repaired.

        Raises:
            InputError: no run, or one that has made no trial yet; says which command goes on.
            DamagedFile: a run that has lost one of its two files.
        """
        run, lost = cls(path), [name for name in ("run.toml", "study.db") if not (path / name).is_file()]
        if lost == ["run.toml"] and not to_repair:
            raise DamagedFile(f"run '{path}' has lost its run.toml; `nas doctor {path} --repair` writes it again from the record")
        if lost == ["study.db"]:
            run._without_record()
        if lost == ["run.toml", "study.db"]:
            raise no_run(path)
        return run

    def _without_record(self) -> NoReturn:
        """Says why there is none: a run gets its record with its first trial, once its blocks are calibrated."""
        try:
            command = search_command(self.path, self.config())
        except DamagedFile:
            command = "the same `nas search`"
        if any(next(self.path.glob(made), None) for made in ("winner*", "study.db*", "report.before-repair-*")):
            raise DamagedFile(f"run '{self.path}' has lost its record (no study.db); put it back from a copy, or start afresh with: {command} --new")
        raise InputError(
            f"run '{self.path}' has made no trial yet (no study.db): its blocks are being calibrated, or that was interrupted; go on with: {command}"
        )

    def create(self, config: Mapping[str, Mapping[str, Any]]) -> None:
        """Makes the folder and writes `run.toml`, or checks that the run already there has the same configuration.

        A run that never got as far as its record, such as one whose space could not be made ready, takes the new one.

        Raises:
            InputError: the folder cannot be written.
            RunMismatch: a run with another configuration stands there.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not os.access(self.path, os.W_OK):
                raise PermissionError(13, "permission denied")
            if not (self.path / "run.toml").exists():
                write_whole(self.path / "run.toml", to_toml(config).encode())
        except UnicodeEncodeError as error:
            raise InputError(f"{error.object[:200]!r} must be Unicode text to be written to run.toml; rename the file it names") from None
        except OSError as error:
            raise InputError(f"cannot write to {self.path}: {error.strerror}; choose another --workdir") from error
        self._check_same(config)

    @property
    def report(self) -> Path:
        """The report that its search keeps up to date."""
        return self.path / "report.html"

    def config(self) -> dict[str, Any]:
        """The content of `run.toml`.

        Raises:
            DamagedFile: it is not what `create` writes.
        """
        return check_config(read_toml(self.path / "run.toml"), str(self.path / "run.toml"))

    def record(self, *, read_only: bool = False) -> Record:
        """The record of trials."""
        return Record(self.path / "study.db", read_only=read_only)

    def reset(self) -> None:
        """Moves what is there aside (suffix `.old-TIME`), so that a new run can start; nothing is deleted.

        Raises:
            RunInUse: another process is writing it.
        """
        if (self.path / ".lock").exists():
            with self.lock():
                pass
        if self.path.exists():
            aside = f"{self.path.name}.old-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
            same = len(list(self.path.parent.glob(f"{glob.escape(aside)}*")))  # of the same second
            shutil.move(self.path, self.path.with_name(f"{aside}-{same}" if same else aside))

    def winner(self, eps: float, several: bool) -> Path:
        """Where the winner of an eps is saved."""
        return self.path / (f"winner-eps{exact(eps)}" if several else "winner")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the run for one writer; the operating system releases it when the process dies.

        Raises:
            RunInUse: another live process holds it.
            InputError: the lock cannot be made.
        """
        try:
            lock = (self.path / ".lock").open("a+", encoding="utf-8")
        except OSError as error:
            raise InputError(f"cannot write to {self.path}: {error.strerror}; choose another --workdir") from error
        with lock as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise RunInUse(f"run '{self.path}' is in use by {file.read().strip() or 'another process'}; wait for it or stop it") from None
            except OSError as error:  # some network file systems have no locks
                raise InputError(f"cannot lock {self.path}: {error.strerror}; choose a --workdir on a local disk") from error
            file.truncate(0)
            file.write(f"pid {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
            file.flush()
            yield

    def _check_same(self, config: Mapping[str, Mapping[str, Any]]) -> None:
        found, wanted = self.config(), tomllib.loads(to_toml(config))
        free = {"versions", "source", *(["asked"] if (self.path / "study.db").exists() else [])}  # a record tells what was asked last
        differing = [
            f"{section}.{key}: {found.get(section, {}).get(key)!r} there, {value!r} now"
            for section, values in wanted.items()
            if section not in free
            for key, value in values.items()
            if _unplaced(found.get(section, {}).get(key)) != _unplaced(value)
        ]
        if differing and not (self.path / "study.db").exists() and not any(self.path.glob("winner*")):  # it stopped before its first trial
            with self.lock():
                write_whole(self.path / "run.toml", to_toml(config).encode())
        elif differing:
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
        # DEL is the one character that JSON writes plainly and TOML does not allow
        lines += [f"{_key(key)} = {json.dumps(value, ensure_ascii=False)}".replace("\x7f", "\\u007f") for key, value in values.items() if value is not None]
        lines.append("")
    return "\n".join(lines)


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name, ensure_ascii=False)


def _unplaced(value: Any) -> Any:
    """What is named in a file of the user's without the folder, which may be another one: fingerprints tell what it is. Anything else as it is."""
    head, colon, function = value.partition(":") if isinstance(value, str) else ("", "", "")
    return f"{Path(head).name}{colon}{function}" if head.endswith(".py") else value


def _placed(path: Path, config: Mapping[str, Mapping[str, Any]]) -> tuple[Path, str]:
    """Where a run lies and the name of its space; both in full where that is in a file, whose name alone means another file in another folder."""
    name, file = str(config.get("space", {}).get("name", path.name)), config.get("source", {}).get("file")
    place = (path.resolve() / file).resolve() if file else None
    if place is None or not place.is_file():
        return path, name
    _, colon, function = name.partition(":")
    return path.resolve(), f"{place}{colon}{function}"


def search_command(path: Path, config: Mapping[str, Mapping[str, Any]], trials: int | None = None) -> str:
    """A command that states the search of a run again, with so many trials: those that its record tells, else those it was first given.

    >>> search_command(Path("runs/a b"), {"space": {"name": "demo"}, "search": {"eps": [0.1, 0.2], "seed": 0, "keep_dominated": False}}, 9)
    "nas search --space demo --eps 0.1 --eps 0.2 --seed 0 --trials 9 --workdir runs --name 'a b'"
    """
    space, search = config.get("space", {}), config.get("search", {})
    path, name = _placed(path if path.name else path.resolve(), config)
    words = ["nas", "search", "--space", name]
    for name, value in [*((n, v) for n, v in space.items() if n != "name"), *search.items()]:
        option = f"--{name.replace('_', '-')}"
        values = value if isinstance(value, list) else [value]
        words += [option] if value is True else [word for v in values if v is not False for word in (option, exact(v) if isinstance(v, float) else str(v))]
    trials = config.get("asked", {}).get("trials") if trials is None else trials
    if trials is not None:
        words += ["--trials", str(trials)]
    return shlex.join([*words, "--workdir", str(path.parent), "--name", path.name])
