"""How long does a browser take to open the report of 2,000 trials, and how large is it?

A search with random candidates on a synthetic space makes the run; Chromium, started afresh and without a window, opens its report. `first_paint_ms` and
`load_ms` are the browser's own clock from the navigation's start, so a busy machine makes them larger; `main_thread_cpu_ms` is the processor time of the page's
main thread until after the load, which a busy machine does not change much.

    python benchmarks/report_opening.py [--trials 2000] [--openings 7] [--to FOLDER]
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from chromium import CHROMIUM, Page, browser
from dated import FOLDER, write_result

import nas

QUIET_S = 1.0  # after the load: what the page still does then belongs to its opening


def opening(page: Path, width: int) -> dict[str, float]:
    """Milliseconds of one opening."""
    with browser(width) as chromium:
        opened = Page(chromium, width)
        opened.open(page)
        time.sleep(QUIET_S)
        script = (
            "JSON.stringify({first_paint_ms: performance.getEntriesByName('first-contentful-paint')[0].startTime,"
            " load_ms: performance.getEntriesByType('navigation')[0].loadEventEnd, marks: document.querySelectorAll('.mark.trial').length})"
        )
        found: dict[str, float] = json.loads(opened.evaluate(script))
        metrics = {row["name"]: row["value"] for row in opened.call("Performance.getMetrics")["metrics"]}
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
