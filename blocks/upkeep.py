"""What a block store holds, which of it is damaged or left over, and its removal."""

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nas.blocks.store import BlockRecord, BlockStore
from nas.errors import DamagedFile, InputError

_DRAFT_S = 3600.0  # a draft folder this old belongs to a process that was killed
_UNFINISHED_S = 7 * 86400.0  # nobody goes on with a fit after so long


@dataclass(frozen=True, slots=True)
class Stored:
    """One block in the store: its record, None if the manifest cannot be read; bytes on disk; when it was made (seconds since 1970)."""

    key: str
    record: BlockRecord | None
    nbytes: int
    made: float


def stored_blocks(store: BlockStore) -> Iterator[Stored]:
    """Every block, in order of its key."""
    for key in list(store.keys()):
        folder = store.folder(key)
        try:
            record = store.record(key)
        except DamagedFile:
            record = None
        yield Stored(key, record, folder_bytes(folder), folder.stat().st_mtime)


def damage(store: BlockStore, key: str) -> str | None:
    """What is wrong with a block; None if its weights are what its manifest vouches for."""
    try:
        store.record(key)
        store.weights(key)
    except DamagedFile as error:
        return str(error)
    return None


def leftovers(store: BlockStore) -> list[Path]:
    """Folders that are no blocks: moved aside as damaged, drafts of processes that were killed, fits that nobody went on with."""
    old = time.time() - _DRAFT_S
    found = [path for path in store.root.glob("??/*.damaged-*") if path.is_dir()]
    found += [path for path in store.root.glob("??/.draft-*") if path.is_dir() and path.stat().st_mtime < old]
    found += [path for path in store.root.glob("unfinished/*") if path.is_dir() and path.stat().st_mtime < time.time() - _UNFINISHED_S]
    return sorted(found)


def remove(folder: Path) -> None:
    """Deletes one folder of the store.

    Raises:
        InputError: it cannot be deleted.
    """
    try:
        shutil.rmtree(folder)
    except OSError as error:
        raise InputError(f"cannot remove {folder}: {error.strerror}; make the cache folder writable") from error


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
