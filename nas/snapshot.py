"""A copy of a live SQLite file as it stands at one moment."""

from pathlib import Path

from nas.errors import InputError


def copy_database(path: Path, folder: Path) -> Path:
    """A consistent copy in `folder` of an SQLite file and its write-ahead log, made without a lock and without changing anything.

    The log only grows until it is written back into the file and begun anew; a copy during which neither happened is one moment's state
    (a frame that was half written is cut off by its checksum).

    Raises:
        InputError: the file cannot be read.
    """
    log = path.with_name(path.name + "-wal")
    try:
        while True:
            before = _state(path, log)
            content, frames = path.read_bytes(), log.read_bytes() if log.exists() else b""
            if _state(path, log) == before:
                break
        (folder / path.name).write_bytes(content)
        (folder / log.name).write_bytes(frames)
    except OSError as error:
        raise InputError(f"cannot read the record {path}: {error.strerror or error}") from error
    return folder / path.name


def _state(path: Path, log: Path) -> tuple[int, int, bytes]:
    """What changes when the log is written back or begun anew: the file's time and size, and the log's header."""
    try:
        with log.open("rb") as file:
            header = file.read(32)
    except FileNotFoundError:
        header = b""
    found = path.stat()
    return found.st_mtime_ns, found.st_size, header
