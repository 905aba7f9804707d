"""How long a run has taken, all its sessions together, also those that were interrupted or killed."""

import time
from collections.abc import Mapping
from typing import Final

from nas.record import Record

STRIDE_S: Final = 5.0
"""Seconds between two entries in the record: what a killed session may lose."""


def in_parts(known: Mapping[str, float], measure: float, propose: float, *, alone: bool) -> dict[str, float]:
    """Seconds of a run as results state them; `known` are those of its clock, of which a killed session or a repair may have lost some.

    The total is at least the sum of its parts, unless others measured meanwhile (not `alone`).

    >>> in_parts({}, 3.0, 2.5, alone=True)
    {'calibrate': 0.0, 'measure': 3.0, 'propose': 2.5, 'total': 5.5}
    """
    parts = {"calibrate": known.get("calibrate", 0.0), "measure": round(measure, 3), "propose": round(propose, 3)}
    least = sum(parts.values()) if alone else parts["calibrate"]
    return {**parts, "total": max(known.get("total", 0.0), round(least, 3))}


class Clock:
    """Seconds of a run: `calibrate` until its space is ready, `total` until now; earlier sessions are in the record.

    A session that adds no trial (the same command on a finished run) adds nothing.
    """

    def __init__(self, record: Record, started: float, calibrated: float) -> None:
        earlier: dict[str, float] = record.fact("seconds", {})
        self._record = record
        self._started = started
        self._calibrated = calibrated
        self._calibrate = float(earlier.get("calibrate", 0.0))
        self._total = float(earlier.get("total", 0.0))
        self._written = started
        self._idle = record.fact("result") is not None

    def trial(self) -> None:
        """Notes that a trial was added; writes the time down every few seconds."""
        self._idle = False
        if time.monotonic() - self._written > STRIDE_S:
            self.write()

    def write(self) -> dict[str, float]:
        """Writes the time down, and returns it."""
        self._written, seconds = time.monotonic(), self.seconds
        self._record.set_fact("seconds", seconds)
        return seconds

    @property
    def seconds(self) -> dict[str, float]:
        """All sessions so far."""
        if self._idle:
            return {"calibrate": self._calibrate, "total": self._total}
        now = time.monotonic()
        return {"calibrate": round(self._calibrate + self._calibrated - self._started, 3), "total": round(self._total + now - self._started, 3)}
