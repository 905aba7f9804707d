"""Keeps a run's `report.html` up to date while it is searched."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nas.arguments import folder
from nas.errors import InputError
from nas.files import write_whole
from nas.findings import read_run
from nas.progress import Progress
from nas.report.forecast import forecast
from nas.report.page import render
from nas.run_directory import RunDirectory
from nas.trial import Trial

if TYPE_CHECKING:
    from nas.study import Study

STRIDE_S: Final = 5.0
"""Least seconds between two reports of a search under way."""


def write_report(run: Path | str, to: Path | str | None = None, *, predict: bool = True) -> Path:
    """Writes the report of a run, by default into it, and gives its path; `predict` adds what a model makes of the trials (takes seconds).

    Raises:
        InputError: the folder is no run, or the file cannot be written.
    """
    findings = read_run(run)
    page = render(findings, forecast(findings) if predict else None)
    target = RunDirectory(findings.path).report if to is None else folder("to", to)
    try:
        write_whole(target, page.encode())
    except OSError as error:
        raise InputError(f"cannot write the report {target}: {error.strerror}; give another place with --to") from error
    return target


class ReportWriter:
    """A callback that writes the report at the start, every few seconds, and at the end; a report that cannot be written stops nothing."""

    def __init__(self, run: Path, progress: Progress) -> None:
        self._run = run
        self._progress = progress
        self._last = -STRIDE_S
        self._failed = False

    def start(self, study: "Study") -> None:
        del study
        self._write(predict=False)

    def trial(self, study: "Study", trial: Trial) -> None:
        del study, trial
        if time.monotonic() - self._last > STRIDE_S:
            self._write(predict=False)

    def end(self, result: Mapping[str, Any] | None) -> None:
        self._write(predict=result is not None)

    def _write(self, predict: bool) -> None:
        self._last = time.monotonic()
        try:
            write_report(self._run, predict=predict)
        except Exception as error:  # whatever is wrong with the report must not end the search
            if not self._failed:
                self._progress.note(f"no report: {error} (the search goes on; `nas report {self._run}` writes it later)")
            self._failed = True
