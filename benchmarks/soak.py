"""Does a long search keep its memory, and does a reader beside it never fail and never hold it up?

    python benchmarks/soak.py [--optimizers random,eps_gp] [--trials 2000] --to benchmarks/results/soak-DATE.json     (`make test-soak`)

`random` makes so many trials in one search on a table of 4^6 candidates; an optimizer with a model makes them in searches of 100 at most, one after the
other in this process. Meanwhile another process reads the record of the newest again and again as `nas show` does. Memory is the resident set after
every twentieth part; growth is that of the last over the one at a quarter, when everything is loaded and warm.
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from importlib.metadata import version
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from nas.job import search
from nas.problem import CostTable
from nas.run_directory import RunDirectory
from nas.summary import summarize
from nas.table import Table, write_table

MOST = {"random": 1_000_000}  # trials of one search
EPS = (0.01, 0.003, 0.03, 0.005, 0.02)


def make_table(path: Path) -> None:
    """Six stages of four choices; divergences compound, with noise of 10 %."""
    rng = np.random.default_rng(0)
    sizes = (4,) * 6
    rows = np.indices(sizes).reshape(6, -1).T
    errors = np.sort(rng.lognormal(-6, 1, (6, 4)), axis=1)
    errors[:, 0] = 0
    divergence = np.take_along_axis(errors.T, rows, 0).sum(1) * rng.lognormal(0, 0.1, len(rows))
    costs = CostTable({"params": np.sort(rng.integers(1, 1000, (6, 4)).astype(float))[:, ::-1].copy()})
    write_table(path, Table(sizes, divergence, costs, errors))


def read_on(runs: Path, stop: Event, reads: Any, failures: Any) -> None:
    """Reads the newest run until told to stop."""
    while not stop.is_set():
        begun = sorted(runs.glob("run*/study.db"))
        if not begun:
            time.sleep(0.01)
            continue
        try:
            directory = RunDirectory.open(begun[-1].parent)
            with directory.record(read_only=True) as record:
                summarize(directory, record)
            reads.value += 1
        except Exception as error:
            failures.put(f"{type(error).__name__}: {error}")
        time.sleep(0.25)


def soak(optimizer: str, trials: int, folder: Path) -> dict[str, Any]:
    """Searches with a reader beside them."""
    make_table(folder / "table.npz")
    context = multiprocessing.get_context("spawn")
    stop, reads, failures = context.Event(), context.Value("i", 0), context.SimpleQueue()
    reader = context.Process(target=read_on, args=(folder / "runs", stop, reads, failures))
    reader.start()
    process, memory, done, searches = psutil.Process(os.getpid()), dict[int, float](), 0, 0

    def on_trial(study: Any) -> None:
        n = done + len(study.trials)
        if n % (trials // 20) == 0:
            memory[n] = process.memory_info().rss / 2**20

    started, most = time.monotonic(), MOST.get(optimizer, 100)
    while done < trials:
        options = {"workdir": folder / "runs", "name": f"run{searches:05}", "optimizer": optimizer, "trials": min(trials - done, most), "seed": searches}
        result = search(f"table:{folder / 'table.npz'}", EPS[searches % len(EPS)], on_trial=on_trial, **options)
        done, searches = done + len(result.study.trials), searches + 1
    seconds = time.monotonic() - started
    stop.set()
    reader.join()
    found = []
    while not failures.empty():
        found.append(failures.get())
    warm = min(n for n in memory if n >= trials // 4)
    return {
        "optimizer": optimizer, "n_trials": done, "searches": searches, "seconds": round(seconds, 1), "reads": reads.value, "failed_reads": found,
        "rss_mb": {n: round(mb, 1) for n, mb in memory.items()}, "growth_percent": round(100 * (memory[max(memory)] / memory[warm] - 1), 2),
    }  # fmt: skip


def main() -> None:
    """Prints a row an optimizer, and writes them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optimizers", default="random,eps_gp")
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--to", type=Path)
    asked = parser.parse_args()
    rows = []
    for optimizer in asked.optimizers.split(","):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(soak(optimizer, asked.trials, Path(folder)))
        print(rows[-1], flush=True)
    if asked.to:
        versions = {package: version(package) for package in ("stage-nas", "torch", "numpy")}
        command = " ".join(["python", "benchmarks/soak.py", *sys.argv[1:]])
        asked.to.write_text(json.dumps({"command": command, "versions": versions, "rows": rows}, indent=1) + "\n")
    if any(row["failed_reads"] or row["growth_percent"] >= 5 for row in rows):
        raise SystemExit("a read failed, or memory grew by 5 % or more")


if __name__ == "__main__":
    main()
