"""How long does a browser take to open the report of 2,000 trials, and how large is it?

A search with random candidates on a synthetic space makes the run; Chromium, started afresh and without a window, opens its report. `first_paint_ms` and
`load_ms` are the browser's own clock from the navigation's start, so a busy machine makes them larger; `main_thread_cpu_ms` is the processor time of the page's
main thread until after the load, which a busy machine does not change much.

    python benchmarks/report_opening.py [--trials 2000] [--openings 7] [--to FOLDER]
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dated import FOLDER, write_result

import nas

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET_S = 1.0  # after the load: what the page still does then belongs to its opening


class Browser:
    """Chromium's debugging protocol over a pair of pipes: JSON messages, each ended by a zero byte."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers = os.fdopen(commands, "wb", 0), os.fdopen(answers, "rb")
        self._number, self._rest, self._seen = 0, b"", list[dict[str, Any]]()

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """The result of a command; events that come before it are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters, **({"sessionId": session} if session else {})}
        self._commands.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise SystemExit(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result
            self._seen.append(answer)

    def wait(self, event: str) -> None:
        """Until the event has come."""
        while not any(message.get("method") == event for message in self._seen):
            self._seen.append(self._read())

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            part = self._answers.read1(1 << 16)
            if not part:
                raise SystemExit("the browser has ended")
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found


@contextmanager
def browser(width: int) -> Iterator[Browser]:
    """A fresh browser with a profile of its own."""
    (their_in, our_out), (our_in, their_out) = os.pipe(), os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", f"--user-data-dir={profile}", f"--window-size={width},900"]
        start = ["bash", "-c", f'exec "$@" 3<&{their_in} 4>&{their_out}', "_", str(CHROMIUM), *options]
        process = subprocess.Popen(start, pass_fds=(their_in, their_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(their_in)
        os.close(their_out)
        found = Browser(our_out, our_in)
        try:
            yield found
        finally:
            found.call("Browser.close")
            process.wait(timeout=60)


def opening(page: Path, width: int) -> dict[str, float]:
    """Milliseconds of one opening."""
    with browser(width) as chromium:
        target = chromium.call("Target.createTarget", url="about:blank")["targetId"]
        session = chromium.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        chromium.call("Page.enable", session)
        chromium.call("Performance.enable", session, timeDomain="threadTicks")
        chromium.call("Page.navigate", session, url=page.as_uri())
        chromium.wait("Page.loadEventFired")
        time.sleep(QUIET_S)
        script = (
            "JSON.stringify({first_paint_ms: performance.getEntriesByName('first-contentful-paint')[0].startTime,"
            " load_ms: performance.getEntriesByType('navigation')[0].loadEventEnd, marks: document.querySelectorAll('.mark.trial').length})"
        )
        found: dict[str, float] = json.loads(chromium.call("Runtime.evaluate", session, expression=script)["result"]["value"])
        metrics = {row["name"]: row["value"] for row in chromium.call("Performance.getMetrics", session)["metrics"]}
        return {**found, "main_thread_cpu_ms": 1000 * metrics["TaskDuration"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--openings", type=int, default=7)
    parser.add_argument("--to", type=Path, default=FOLDER, help="folder of the result")
    asked = parser.parse_args()
    if CHROMIUM is None:
        raise SystemExit("no chromium is installed")
    with tempfile.TemporaryDirectory() as folder:
        run = nas.search("synthetic:3", (0.005, 0.02), workdir=folder, name="run", trials=asked.trials, optimizer="random").run
        assert run is not None
        page = run / "report.html"
        rows = {width: [opening(page, width) for _ in range(asked.openings)] for width in (390, 1400)}
        size = page.stat().st_size
    if any(row["marks"] != asked.trials for opened in rows.values() for row in opened):
        raise SystemExit("a trial is missing in the page")
    figures = ("first_paint_ms", "load_ms", "main_thread_cpu_ms")
    result = {
        f"{width} pixels wide": {name: {"median": round(statistics.median(row[name] for row in opened)), "most": round(max(row[name] for row in opened))}
                                 for name in figures}
        for width, opened in rows.items()
    }  # fmt: skip
    version = subprocess.run([str(CHROMIUM), "--version"], capture_output=True, text=True, check=True).stdout.strip()
    write_result(
        "report_opening",
        {"trials": asked.trials, "bytes": size, "browser": version, "load_average": round(os.getloadavg()[0], 1), "openings": asked.openings, **result},
        asked.to,
    )


if __name__ == "__main__":
    main()
