"""The space of a run, made again from what `run.toml` says: from the file the search took it from, and only if its fingerprints are the run's."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nas.errors import InputError, RunMismatch
from nas.names import resolve_space
from nas.protocols import HasMoreCosts, Space


def recorded_file(run: Path, name: str) -> dict[str, dict[str, str]]:
    """The section of `run.toml` that tells where a space's file lies, relative to the run so that both can move together; none for a name."""
    head = name.partition(":")[0]
    return {"source": {"file": os.path.relpath(os.path.realpath(head), os.path.realpath(run))}} if head.endswith(".py") else {}


def file_of_space(run: Path, config: Mapping[str, Mapping[str, Any]]) -> Path | None:
    """The full path of the Python file that a run names as its space; None for a space known by name.

    It is looked for where the search took it from and beside the folder that holds the run; in the current folder only for runs that do not tell
    where it lay.

    Raises:
        InputError: it is in none of these places.
    """
    head = config["space"]["name"].partition(":")[0]
    if not head.endswith(".py"):
        return None
    at, recorded = run.resolve(), config.get("source", {}).get("file")
    beside = at.parent.parent / head
    wanted: list[Path] = [at / recorded, beside] if recorded else [beside, Path(head)]
    places = list(dict.fromkeys(place.resolve() for place in wanted))
    for place in places:
        if place.is_file():
            return place
    tried = ", ".join(f"'{place}'" for place in places)
    raise InputError(f"run '{run}' takes its space from the file '{head}', which is none of {tried}; put it back at the first of them")


def space_of(run: Path, config: Mapping[str, Mapping[str, Any]]) -> Space:
    """The space that a run searched; its file, if it has one, is run.

    Raises:
        InputError: it cannot be made again.
        RunMismatch: what is made now is another space; nothing of it was calibrated.
    """
    origin, file = dict(config["space"]), file_of_space(run, config)
    name = origin.pop("name")
    made_by = name if file is None else f"{file}:{name.partition(':')[2]}"
    source = resolve_space(made_by, **origin)
    _check_same(run, config, source, made_by)
    return source


def _check_same(run: Path, config: Mapping[str, Mapping[str, Any]], source: Space, made_by: str) -> None:
    """Raises unless the fingerprints are those of the run; those of its optimizer and of costs measured for it tell nothing of the space."""
    of_the_search = {"optimizer", *(source.more_costs if isinstance(source, HasMoreCosts) else ())}
    recorded = {name: value for name, value in config.get("fingerprints", {}).items() if name not in of_the_search}
    now = source.fingerprint()
    differing = [f"{name} {recorded.get(name)!r} there, {now.get(name)!r} now" for name in {**recorded, **now} if recorded.get(name) != now.get(name)]
    if differing:
        way_out = "put that file back as it was, and what it loads" if ".py:" in made_by else "give it the teacher, the data and the stage-nas it was made with"
        raise RunMismatch(f"run '{run}' searched another space than '{made_by}' gives ({'; '.join(differing)}); {way_out}, or search anew")
