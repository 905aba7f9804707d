"""Measured values that outlive a run: per-sample divergences by content key, in one SQLite file shared by all processes."""

import hashlib
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from nas.errors import DamagedFile, InputError
from nas.problem import Floats

EXPECTED = "expected-"
"""What the keys of expected losses begin with, whose values are those of no candidate."""


class EvaluationCache:
    """Content key -> the divergence of the first `m` samples, `(m,)` float64, in measurement order; and expected losses of blocks, flat.

    Raises:
        InputError: the file cannot be opened or written.
        DamagedFile: it is not such a cache.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()  # answers of workers arrive on threads of their own
        with self._told():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("CREATE TABLE IF NOT EXISTS divergences (key TEXT PRIMARY KEY, samples BLOB NOT NULL, digest BLOB NOT NULL) WITHOUT ROWID")

    def get(self, key: str) -> Floats:
        """The values known so far, possibly none; values that are not what was put are forgotten."""
        with self._told():
            row = self._db.execute("SELECT samples, digest FROM divergences WHERE key = ?", (key,)).fetchone()
        if row and _digest(key, row[0]) != row[1]:
            self.drop([key])
            row = None
        return np.frombuffer(row[0], dtype="<f8") if row else np.empty(0)

    def put(self, key: str, samples: Floats) -> None:
        """Stores the values unless at least as many are known."""
        content = samples.astype("<f8").tobytes()
        with self._told():
            self._db.execute(
                "INSERT INTO divergences VALUES (?, ?, ?) ON CONFLICT (key) DO UPDATE "
                "SET samples = excluded.samples, digest = excluded.digest WHERE length(excluded.samples) > length(samples)",
                (key, content, _digest(key, content)),
            )

    def size(self) -> tuple[int, int]:
        """How many candidates it knows, and values of them in all."""
        candidates = "SELECT count(*), coalesce(sum(length(samples)), 0) FROM divergences WHERE key NOT LIKE ?"
        with self._told():
            count, nbytes = self._db.execute(candidates, (f"{EXPECTED}%",)).fetchone()
        return int(count), int(nbytes) // 8

    def damaged(self) -> list[str]:
        """Keys whose values are not what was put."""
        with self._told():
            report = self._db.execute("PRAGMA integrity_check").fetchone()[0]
            if report != "ok":
                raise sqlite3.DatabaseError(report)
            return [key for key, *row in self._db.execute("SELECT key, samples, digest FROM divergences") if _digest(key, row[0]) != row[1]]

    def drop(self, keys: list[str] | None = None) -> int:
        """Forgets the values of these keys, of all by default; how many there were."""
        with self._told():
            if keys is None:
                return self._db.execute("DELETE FROM divergences").rowcount
            return sum(self._db.execute("DELETE FROM divergences WHERE key = ?", (key,)).rowcount for key in keys)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Says of what goes wrong where it did and what helps."""
        try:
            with self._lock:
                yield
        except (OSError, sqlite3.OperationalError) as error:
            raise InputError(f"cannot use the evaluation cache {self.path}: {error}; set NAS_HOME to a writable folder with space") from error
        except sqlite3.DatabaseError as error:
            raise DamagedFile(f"the evaluation cache {self.path} is damaged ({error}); remove it: it is filled again as candidates are measured") from error


def _digest(key: str, content: bytes) -> bytes:
    return hashlib.sha256(key.encode() + b":" + content).digest()[:16]
