"""Measured values that outlive a run: per-sample divergences by content key, in one SQLite file shared by all processes."""

import sqlite3
from pathlib import Path

import numpy as np

from nas.errors import InputError
from nas.problem import Floats


class EvaluationCache:
    """Content key -> the divergence of the first `m` samples, `(m,)` float64, in measurement order.

    Raises:
        InputError: the file cannot be opened for writing.
    """

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=60, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("CREATE TABLE IF NOT EXISTS evaluations (key TEXT PRIMARY KEY, samples BLOB NOT NULL) WITHOUT ROWID")
        except (OSError, sqlite3.Error) as error:
            raise InputError(f"cannot open the evaluation cache {path}: {error}; set NAS_HOME to a writable folder") from error

    def get(self, key: str) -> Floats:
        """The values known so far, possibly none."""
        row = self._db.execute("SELECT samples FROM evaluations WHERE key = ?", (key,)).fetchone()
        return np.frombuffer(row[0], dtype="<f8") if row else np.empty(0)

    def put(self, key: str, samples: Floats) -> None:
        """Stores the values unless at least as many are known."""
        self._db.execute(
            "INSERT INTO evaluations VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET samples = excluded.samples WHERE length(excluded.samples) > length(samples)",
            (key, samples.astype("<f8").tobytes()),
        )
