"""Which run may have been meant where a folder is none."""

import difflib
from pathlib import Path

from nas.errors import InputError

FILES = ("run.toml", "study.db")
"""What tells a run directory from others: one of them at least."""


def no_run(path: Path) -> InputError:
    """The error that a folder is no run, with the nearest name of one beside it or under `runs`, or with the latest of those in it."""
    text = f"'{path}' is not a run directory (no {', no '.join(FILES)})"
    inside = runs_in(path)
    if inside:
        return InputError(f"{text}; it holds {len(inside)} run{'s' * (len(inside) > 1)}, the latest is '{inside[-1]}'")
    beside = {run.name: run for folder in (path.parent / "runs", path.parent) for run in runs_in(folder)}
    near = difflib.get_close_matches(path.name, beside, n=1, cutoff=0.65)
    return InputError(f"{text}; did you mean '{beside[near[0]]}'?" if near else f"{text}; give a folder that `nas search` made, such as runs/NAME")


def runs_in(folder: Path) -> list[Path]:
    """The runs that lie in a folder, the latest last."""
    try:
        found = [path for path in folder.iterdir() if any((path / name).is_file() for name in FILES)]
        return sorted(found, key=lambda path: path.stat().st_mtime)
    except OSError:
        return []
