"""What is wrong with a run directory, file by file, and its repair: damaged files are moved aside, never removed."""

import os
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from nas.errors import DamagedFile, NasError
from nas.files import MANIFEST, check_form, damage, inside, move_aside, read_json, write_whole
from nas.record import Record
from nas.run_directory import RunDirectory, to_toml
from nas.trial import Trial

MADE_OF_A_WINNER = {"cascade-eps*": "nas cascade", "finetuned-*": "nas tocsr finetune"}
"""Folders of a run besides its winners, and which command makes them."""

State = Literal["ok", "damaged", "repaired", "absent"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. `absent` things are made again by the same search and are no fault."""

    what: str
    state: State
    detail: str = ""

    def to_json(self) -> dict[str, Any]:
        """The JSON of `nas doctor`."""
        return asdict(self)


def examine(run: RunDirectory, blocks: Path, *, repair: bool = False) -> list[Finding]:
    """Looks at the configuration, the record, the winners and the blocks of a run (kept under `blocks`), and repairs what can be repaired.

    Raises:
        RunInUse: repair was asked for while another process writes the run.
    """
    if not repair:
        return list(_examine(run, blocks, repair=False))
    with run.lock():
        return list(_examine(run, blocks, repair=True))


def _examine(run: RunDirectory, blocks: Path, *, repair: bool) -> Iterator[Finding]:
    kept = yield from _record(run, repair=repair)
    facts = _facts(run)
    yield _config(run, facts.get("config"), repair=repair)
    saved = facts.get("saved") or {}
    there = {path for path in run.path.glob("winner*") if path.is_dir() and ".damaged-" not in path.name}
    for folder in sorted({*there, *(inside(run.path, name) for name in saved)}):
        yield _model(folder, "the same `nas search`", repair=repair)
    left = sorted(path.name for path in there if path.is_dir())
    if left and not kept:
        yield _without_a_trial(run, left)
    for pattern, command in MADE_OF_A_WINNER.items():
        for folder in sorted(path for path in run.path.glob(pattern) if path.is_dir() and ".damaged-" not in path.name):
            yield _model(folder, f"the same `{command}`", repair=repair)
    yield from _blocks(facts.get("blocks") or {}, blocks, repair=repair)


def _record(run: RunDirectory, *, repair: bool) -> Generator[Finding, None, int]:
    """What is wrong with the record; returns how many trials can be read."""
    path = run.path / "study.db"
    try:
        with run.record(read_only=True) as record:
            trials, lost = record.readable()
            wrong = [*lost, *_unreadable_facts(record), *record.faults()]
    except DamagedFile as error:
        trials, wrong = [], [str(error)]
    if not wrong:
        yield Finding("record", "ok", f"{len(trials)} trials")
        return len(trials)
    for line in wrong:
        yield Finding("record", "damaged", line)
    if repair:
        aside, report = _rebuild(run, trials), _keep_report(run)
        shown = f", its last report in {report.name}" if report else ""
        yield Finding("record", "repaired", f"{len(trials)} trials are kept; what was there is in {aside.name}{shown}; the same `nas search` goes on from them")
    else:
        yield Finding("record", "damaged", f"{len(trials)} trials can be read; `nas doctor {run.path} --repair` keeps them and moves {path.name} aside")
    return len(trials)


def _without_a_trial(run: RunDirectory, winners: Sequence[str]) -> Finding:
    """That models stand there while nothing is left of how they were found."""
    way_out = f"put {run.path / 'study.db'} back from a copy; or copy them elsewhere: the same `nas search` starts again and saves its own in their place"
    return Finding("winners", "damaged", f"no trial can be read, so that nothing tells how {', '.join(winners)} came about; {way_out}")


def _unreadable_facts(record: Record) -> list[str]:
    found = []
    try:
        names = record.facts()
    except NasError as error:
        return [str(error)]
    for name in names:
        try:
            record.fact(name)
        except NasError as error:
            found.append(str(error))
    return found


def _rebuild(run: RunDirectory, trials: list[Trial]) -> Path:
    """A new record of what can be read, its trials numbered without gaps; returns where the old one lies."""
    draft = run.path / f".study.db.{os.getpid()}"
    facts = {} if not trials else _facts(run)
    facts.pop("result", None)  # it is of all trials; the same search states it again
    with Record(draft) as record:
        for number, trial in enumerate(trials):
            record.add(replace(trial, number=number))
        for name, value in facts.items():
            record.set_fact(name, value)
    aside = move_aside(run.path / "study.db")
    for ending in ("-wal", "-shm"):
        with suppress(FileNotFoundError):
            (run.path / f"study.db{ending}").rename(aside.with_name(aside.name + ending))
    draft.rename(run.path / "study.db")
    return aside


def _keep_report(run: RunDirectory) -> Path | None:
    """Moves the report aside, which may be the last readable copy of lost trials: the next one would take its place."""
    stamp = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    with suppress(FileNotFoundError):
        return run.report.rename(run.path / f"{run.report.stem}.before-repair-{stamp}.html")
    return None


def _facts(run: RunDirectory) -> dict[str, Any]:
    """The facts that can be read."""
    found: dict[str, Any] = {}
    with suppress(NasError), run.record(read_only=True) as record:
        for name in record.facts():
            with suppress(NasError):
                found[name] = record.fact(name)
    return found


def _config(run: RunDirectory, kept: Any, *, repair: bool) -> Finding:
    try:
        config = run.config()
    except DamagedFile as error:
        if not repair or kept is None:
            way_out = "--repair writes it again from the record" if kept is not None else "the record holds no copy of it; start the search with --new"
            return Finding("run.toml", "damaged", f"{error}; {way_out}")
        check_form(kept, {str: dict}, "the record's copy of run.toml")
        with suppress(FileNotFoundError):
            move_aside(run.path / "run.toml")
        write_whole(run.path / "run.toml", to_toml(kept).encode())
        return Finding("run.toml", "repaired", "written again from the record's copy")
    if kept is not None and kept != config:
        return Finding("run.toml", "damaged", "it differs from the record's copy; put back what was changed, or start the search with --new")
    return Finding("run.toml", "ok")


def _model(folder: Path, maker: str, *, repair: bool) -> Finding:
    if not folder.is_dir():
        return Finding(folder.name, "absent", f"{maker} saves it again")
    try:
        wrong = damage(folder) if (folder / MANIFEST).exists() else [f"it has no {MANIFEST} that vouches for it"]
    except (NasError, OSError) as error:
        wrong = [str(error)]
    if not wrong:
        return Finding(folder.name, "ok", f"{len(read_json(folder / MANIFEST)['files'])} files, hashes agree")
    if repair:
        return Finding(folder.name, "repaired", f"{wrong[0]}; moved to {move_aside(folder).name}, {maker} saves it again")
    return Finding(folder.name, "damaged", f"{'; '.join(wrong)}; `nas doctor {folder.parent} --repair` moves it aside, {maker} saves it again")


def _blocks(keys: dict[str, str], root: Path, *, repair: bool) -> Iterator[Finding]:
    if not keys:
        return
    from nas.blocks.store import BlockStore

    store = BlockStore(root)
    counts = {"ok": 0, "absent": 0}
    for name, key in sorted(keys.items()):
        try:
            if key not in store:
                counts["absent"] += 1
                continue
            store.check(key)
            counts["ok"] += 1
        except (NasError, OSError) as error:
            if repair:
                store.drop(key)
            yield Finding(f"block {name}", "repaired" if repair else "damaged", f"{error}" + ("; moved aside, it will be calibrated again" if repair else ""))
    if counts["ok"]:
        yield Finding("blocks", "ok", f"{counts['ok']} blocks, hashes agree")
    if counts["absent"]:
        yield Finding("blocks", "absent", f"{counts['absent']} blocks are not in this machine's store; they are calibrated when needed")
