"""What a user's own code raises, as one line that says where: a space's file, a recipe, a divergence."""

import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nas.errors import NasError, UserCodeError

_LIBRARIES = ("nas", "torch", "typer", "rich")
_STANDARD = str(Path(sysconfig.get_paths()["stdlib"]).resolve())
_INSTALLED = ("site-packages", "dist-packages")


@contextmanager
def user_code(what: str, way_out: str = "") -> Iterator[None]:
    """Turns what the code inside raises into a `UserCodeError`; our own errors, want of memory and bugs of the toolkit pass.

    Args:
        what: whose code it is, such as "recipe 'narrow', stage 'mid'".
        way_out: what to do, after a semicolon.
    """
    try:
        yield
    except (NasError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        if "out of memory" in str(error) or "not enough memory" in str(error):
            raise
        place = _place(error)
        if place is None:
            raise
        raise UserCodeError(f"{_told(what, error, place)}{'; ' if way_out else ''}{way_out}") from error


@contextmanager
def no_exit() -> Iterator[None]:
    """Turns a `SystemExit` of code that is not the toolkit's, wherever it is called, into a `UserCodeError`."""
    try:
        yield
    except SystemExit as error:
        place = _place(error)
        if place is None:
            raise
        raise UserCodeError(_told("code from outside of nas ended the program", error, place)) from error


def _told(what: str, error: BaseException, place: str) -> str:
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{what}: {type(error).__name__}{': ' if first else ''}{first} ({place})"


def _place(error: BaseException) -> str | None:
    """`file:line` of the last call in code that is neither of `_LIBRARIES` nor Python's; an installed package's only if there is no other."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    others: list[str] = []
    installed: list[str] = []
    for frame, line in traceback.walk_tb(error.__traceback__):
        module, file = str(frame.f_globals.get("__name__", "")), frame.f_code.co_filename
        if module.partition(".")[0] in _LIBRARIES or file.startswith("<frozen"):
            continue
        if any(part in Path(file).parts for part in _INSTALLED):
            installed.append(f"{file}:{line}")
        elif not str(Path(file).resolve()).startswith(_STANDARD):
            others.append(f"{file}:{line}")
    return next(reversed(others or installed), None)
