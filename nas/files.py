"""Reading files that others may have written, and writing our own: bounded in size, checked in form, never half done."""

import hashlib
import itertools
import json
import os
import shutil
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from nas.errors import DamagedFile, InputError

TEXT_LIMIT = 16 << 20
"""Bytes of JSON or TOML that are read at most."""

MANIFEST = "manifest.json"
"""Name of the file in a model folder that vouches for the others."""

Form = Any
"""What a value must look like: a type (or a union of types), `[form]` for a list, `{"key": form, "key?": form}` for an object, `{str: form}` for a map."""


def read_bytes(path: Path, limit: int = TEXT_LIMIT) -> bytes:
    """The file's content, read only if it is a plain file of at most `limit` bytes.

    Raises:
        DamagedFile: it is not, or it cannot be read.
    """
    check_plain(path, limit)
    try:
        return path.read_bytes()
    except OSError as error:
        raise DamagedFile(f"{path} cannot be read: {error.strerror}") from error


def check_plain(path: Path, limit: int) -> None:
    """Raises `DamagedFile` unless it is a plain file of at most `limit` bytes."""
    try:
        if not path.is_file():
            raise DamagedFile(f"{path} is missing or not a plain file")
        if path.stat().st_size > limit:
            raise DamagedFile(f"{path} has {path.stat().st_size:,} bytes, more than the {limit:,} that such a file may have")
    except (OSError, ValueError) as error:
        raise DamagedFile(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def read_json(path: Path, form: Form = object, limit: int = TEXT_LIMIT) -> Any:
    """The JSON value in a file, which has the given form.

    Raises:
        DamagedFile: it cannot be read, is not JSON, or has another form.
    """
    return parse_json(read_bytes(path, limit), str(path), form)


def parse_json(text: str | bytes, where: str, form: Form = object) -> Any:
    """A JSON value of the given form; `where` is for the message of the `DamagedFile` that anything else raises."""
    try:
        value = json.loads(text, parse_int=_integer)
    except (ValueError, RecursionError) as error:
        raise DamagedFile(f"{where} is not JSON: {error}") from error
    return check_form(value, form, where)


def _integer(digits: str) -> int:
    if len(digits) > 20:  # beyond 64 bits; without end, beyond what turns into a float
        raise ValueError(f"the number {digits[:20]}... is too large")
    return int(digits)


def read_toml(path: Path) -> dict[str, Any]:
    """The table in a TOML file.

    Raises:
        DamagedFile: it cannot be read or is not TOML.
    """
    try:
        return tomllib.loads(read_bytes(path).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DamagedFile(f"{path} is not TOML: {error}") from error


def check_form(value: Any, form: Form, where: str) -> Any:
    """The value itself if it has the form (see `Form`), else `DamagedFile` that names the place.

    >>> check_form({"a": [1, 2]}, {"a": [int], "b?": str}, "demo")
    {'a': [1, 2]}
    """
    if isinstance(form, list):
        for number, item in enumerate(check_form(value, list, where)):
            check_form(item, form[0], f"{where}[{number}]")
    elif isinstance(form, dict):
        _check_object(check_form(value, dict, where), form, where)
    elif not isinstance(value, form) or (isinstance(value, bool) and bool not in _types(form)):
        raise DamagedFile(f"{where} must be {' or '.join(t.__name__ for t in _types(form))}, got {_short(value)}")
    elif float in _types(form) and isinstance(value, int) and abs(value) > sys.float_info.max:
        raise DamagedFile(f"{where} must be a number of ordinary size, got {_short(value)}")
    return value


def _check_object(value: Mapping[str, Any], form: Mapping[Any, Form], where: str) -> None:
    if str in form:
        for key, item in value.items():
            check_form(item, form[str], f"{where}.{key[:40]}")
        return
    for key, wanted in form.items():
        name = key.removesuffix("?")
        if name in value:
            check_form(value[name], wanted, f"{where}.{name}")
        elif name == key:
            raise DamagedFile(f"{where} must have '{name}', got {', '.join(map(str, list(value)[:8])) or 'nothing'}")


def _types(form: Form) -> tuple[type, ...]:
    return (bool, object) if form is object else getattr(form, "__args__", (form,))


def _short(value: Any) -> str:
    text = repr(value) if not isinstance(value, dict | list) else f"a {type(value).__name__} of {len(value)}"
    return text if len(text) <= 60 else text[:57] + "..."


def write_whole(path: Path, content: bytes) -> None:
    """Writes the file so that a reader, and a crash, find the old content or the new one, never a part.

    Raises:
        OSError: it cannot be written; the old content stands.
    """
    with whole_file(path) as draft:
        draft.write_bytes(content)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Where to write a draft of the file, which takes its place, safely on the disk, once the block has ended well; else it is removed.

    Raises:
        OSError: it cannot be written; what was there stands.
    """
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name[:100]}.", dir=path.parent)
    os.close(descriptor)
    draft = Path(name)
    try:
        yield draft
        with draft.open("rb") as file:
            os.fchmod(file.fileno(), 0o666 & ~_UMASK)
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def check_writable(folder: Path, way_out: str) -> None:
    """Raises `InputError` unless files can be made in the folder, or it can be made; looks, makes nothing."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"cannot write to {folder}: '{there}' is not a writable folder; {way_out}")


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Where to make a draft of the folder, which takes its place once the block has ended well and its manifest is written; else it is removed.

    Raises:
        OSError: it cannot be written; what was there stands.
    """
    draft = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        draft.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(draft, ignore_errors=True)  # of a process that was killed: in containers all have the same few ids
        yield draft
        for path in draft.rglob("*"):
            if path.is_file():  # some writers make theirs readable by their owner alone
                path.chmod(0o666 & ~_UMASK)
        write_manifest(draft)
        if folder.exists():
            shutil.rmtree(folder)
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def copy_whole(folder: Path, to: Path) -> None:
    """Copies a folder file by file to a place where nothing is yet; a copy that cannot be ended leaves nothing there.

    Raises:
        OSError: the first file that cannot be copied.
    """
    with whole_folder(to) as draft:
        draft.mkdir()
        for path in sorted(folder.rglob("*")):
            if path.is_dir():
                (draft / path.relative_to(folder)).mkdir()
            else:
                shutil.copyfile(path, draft / path.relative_to(folder))


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


_UMASK = _umask()  # read once: reading it changes it for a moment, for all threads


def sha256_of(path: Path) -> str:
    """SHA-256 (hex) of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def inside(folder: Path, name: str) -> Path:
    """`folder / name`, for a name that some file states: it must not lead out of the folder.

    Raises:
        InputError: an absolute name, one with '..' or of 256 bytes, or a link that leads elsewhere.
    """
    plain = PurePosixPath(name)
    try:
        strange = not 0 < len(name.encode()) < 256 or "\\" in name or plain.is_absolute() or ".." in plain.parts
        leads_out = strange or not (folder / name).resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError):  # a null byte, a loop of links
        leads_out = True
    if leads_out:
        raise InputError(f"'{name[:80]}' must name a file inside '{folder}'")
    return folder / name


def write_manifest(folder: Path) -> None:
    """Vouches for every file in a folder: `manifest.json` with sizes and hashes."""
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    files = {name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)} for name in names}
    write_whole(folder / MANIFEST, json.dumps({"version": 1, "files": files}, indent=1).encode())


def damage(folder: Path) -> list[str]:
    """What is wrong with a folder by its manifest, a line a file; empty when every file is what the manifest vouches for.

    Raises:
        DamagedFile: the manifest itself is missing or not one.
    """
    files = read_json(folder / MANIFEST, {"version": int, "files": {str: {"bytes": int, "sha256": str}}})["files"]
    found = []
    for name, entry in files.items():
        path = inside(folder, name)
        if not path.is_file():
            found.append(f"{path} is missing")
        elif path.stat().st_size != entry["bytes"]:
            found.append(f"{path} has {path.stat().st_size:,} bytes, its manifest says {entry['bytes']:,}")
        elif sha256_of(path) != entry["sha256"]:
            found.append(f"{path} is damaged (its hash differs from the manifest's)")
    return found


def move_aside(path: Path) -> Path:
    """Moves a damaged file or folder beside itself under a name of its own, so that nothing is destroyed; returns the new place."""
    stem = f"{path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    names = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
    return path.rename(next(target for name in names if not (target := path.with_name(name)).exists()))
