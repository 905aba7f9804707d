"""Does a long search keep its memory, and does a reader beside it never fail and never hold it up?

    python benchmarks/soak.py --to benchmarks/results/soak-DATE.json        (`make test-soak`)

A search of 2,000 trials on a table of 4^6 candidates runs here, while another process reads its record again and again as `nas show` does.
Memory is the resident set after each 100 trials; growth is that of the last over the one at 500, when everything is loaded and warm.
"""

import argparse
import json
import multiprocessing
import os
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
from nas.record import RunDirectory
from nas.summary import summarize
from nas.table import Table, write_table

TRIALS, WARM, EVERY = 2000, 500, 100


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


def read_on(run: Path, stop: Event, reads: Any, failures: Any) -> None:
    """Reads the run until told to stop."""
    while not stop.is_set():
        if not (run / "study.db").exists():
            time.sleep(0.01)
            continue
        try:
            directory = RunDirectory.open(run)
            with directory.record(read_only=True) as record:
                summarize(directory, record)
            reads.value += 1
        except Exception as error:
            failures.put(f"{type(error).__name__}: {error}")
        time.sleep(0.25)


def soak(optimizer: str, folder: Path) -> dict[str, Any]:
    """One search with a reader beside it."""
    make_table(folder / "table.npz")
    context = multiprocessing.get_context("spawn")
    stop, reads, failures = context.Event(), context.Value("i", 0), context.SimpleQueue()
    reader = context.Process(target=read_on, args=(folder / "runs" / "run", stop, reads, failures))
    reader.start()
    process, memory = psutil.Process(os.getpid()), {}

    def on_trial(study: Any) -> None:
        n = len(study.trials)
        if n % EVERY == 0:
            memory[n] = process.memory_info().rss / 2**20

    started = time.monotonic()
    result = search(f"table:{folder / 'table.npz'}", 0.01, workdir=folder / "runs", name="run", optimizer=optimizer, trials=TRIALS, on_trial=on_trial)
    seconds = time.monotonic() - started
    stop.set()
    reader.join()
    found = []
    while not failures.empty():
        found.append(failures.get())
    n_trials = len(result.study.trials)
    return {
        "optimizer": optimizer, "n_trials": n_trials, "seconds": round(seconds, 1), "reads": reads.value, "failed_reads": found,
        "rss_mb": {n: round(mb, 1) for n, mb in memory.items()}, "growth_percent": round(100 * (memory[n_trials] / memory[WARM] - 1), 2),
    }  # fmt: skip


def main() -> None:
    """Prints a row an optimizer, and writes them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optimizers", default="random,additive")
    parser.add_argument("--to", type=Path)
    asked = parser.parse_args()
    rows = []
    for optimizer in asked.optimizers.split(","):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(soak(optimizer, Path(folder)))
        print(rows[-1], flush=True)
    if asked.to:
        versions = {package: version(package) for package in ("stage-nas", "torch", "numpy")}
        asked.to.write_text(json.dumps({"command": "python benchmarks/soak.py", "versions": versions, "rows": rows}, indent=1) + "\n")
    if any(row["failed_reads"] or row["growth_percent"] >= 5 for row in rows):
        raise SystemExit("a read failed, or memory grew by 5 % or more")


if __name__ == "__main__":
    main()
