"""What callers from Python hand over: a value of another kind than an argument takes costs one line that names the argument."""

import math
import os
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeVar

from nas.errors import InputError

T = TypeVar("T")

LARGEST = (1 << 63) - 1
"""What a file and a random generator can take of a whole number."""


def whole(name: str, value: object, least: int = 0, most: int = LARGEST) -> int:
    """A whole number of at least `least`; numpy's are as good."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise InputError(f"{name} must be a whole number of at least {least}, got {shown(value)}")
    if int(value) < least:
        raise InputError(f"{name} must be at least {least}, got {value}")
    if int(value) > most:
        raise InputError(f"{name} must be at most {most}, got {shown(value)}")
    return int(value)


def number(name: str, value: object, least: float = -math.inf) -> float:
    """A finite number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise InputError(f"{name} must be a number, got {shown(value)}")
    try:
        found = float(value)
    except OverflowError:  # a whole number of hundreds of digits
        found = math.inf
    if not math.isfinite(found) or found < least:
        bound = f" of at least {least:g}" if math.isfinite(least) else ""
        raise InputError(f"{name} must be a finite number{bound}, got {shown(value)}")
    return found


def text(name: str, value: object, such_as: str) -> str:
    """A text that is not empty."""
    if not isinstance(value, str) or not value:
        raise InputError(f"{name} must be a text such as '{such_as}', got {shown(value)}")
    return value


def texts(name: str, value: object, such_as: str) -> tuple[str, ...]:
    """Several texts; one alone counts as one."""
    if isinstance(value, str):
        return (text(name, value, such_as),)
    if not isinstance(value, Iterable) or isinstance(value, bytes | Mapping):
        raise InputError(f"{name} must be a list of texts such as ['{such_as}'], got {shown(value)}")
    return tuple(text(f"each of {name}", item, such_as) for item in value)


def flag(name: str, value: object) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise InputError(f"{name} must be True or False, got {shown(value)}")
    return value


def folder(name: str, value: object) -> Path:
    """A path, also as a text."""
    if not isinstance(value, str | os.PathLike) or isinstance(found := os.fspath(value), bytes) or "\0" in found:
        raise InputError(f"{name} must be a path, got {shown(value)}")
    return Path(found)


def folder_name(name: str, value: object) -> str:
    """A name for a folder inside of another."""
    found = text(name, value, "first")
    if "\0" in found or found == ".." or not found or Path(found).name != found:
        slash = "; it may have no '/': the folder that holds it is the workdir" if "/" in found else ""
        raise InputError(f"{name} must be the name of a folder such as 'first', got {shown(value)}{slash}")
    return found


def options(name: str, value: object, *, written: bool) -> dict[str, Any]:
    """Names with values, paths as texts; `written` ones are such as a file can hold."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise InputError(f"{name} must be a dict of names and values such as {{'teacher': 'embedded'}}, got {shown(value)}")
    found = {key: os.fspath(item) if isinstance(item, os.PathLike) else item for key, item in value.items()}
    for key, item in found.items() if written else ():
        if item is not None and (not isinstance(item, str | bool | int | float) or (isinstance(item, float) and not math.isfinite(item))):
            raise InputError(f"{name}: '{key}' must be a text or a finite number, which run.toml can hold, got {shown(item)}; or give workdir=None")
    return found


def with_methods(name: str, value: object, *methods: str) -> Any:
    """An object that has these methods, not the class of such objects."""
    if isinstance(value, type) or not all(callable(getattr(value, method, None)) for method in methods):
        raise InputError(f"{name} must be an object with {', '.join(f'{method}()' for method in methods)}, got {shown(value)}")
    return value


def function(name: str, value: object) -> Callable[..., Any]:
    """Something that can be called."""
    if not callable(value):
        raise InputError(f"{name} must be a function, got {shown(value)}")
    return value


def several(name: str, value: object, such_as: str) -> tuple[Any, ...]:
    """The items of a list."""
    if not isinstance(value, Iterable) or isinstance(value, str | bytes | Mapping | type):
        raise InputError(f"{name} must be a list such as {such_as}, got {shown(value)}")
    return tuple(value)


def instance(name: str, value: object, kind: type[T], way_out: str) -> T:
    """An object of that class."""
    if not isinstance(value, kind):
        raise InputError(f"{name} must be a {kind.__name__}, got {shown(value)}; {way_out}")
    return value


def shown(value: object) -> str:
    """The value as Python writes it, cut where it is long; the type alone where it says nothing else."""
    try:
        written = repr(value)
    except (ValueError, RecursionError):  # a number of more digits than Python writes, a list in itself
        written = f"<{type(value).__name__}"
    if written.startswith("<"):
        return f"a {type(value).__name__}"
    written = " ".join(written.split())
    return written if len(written) <= 60 else f"{written[:60]}..."
