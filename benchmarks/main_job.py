"""How long does the main job take, and how much memory, with an empty cache and with calibrated blocks?

Runs `nas search --space tocsr_unet --eps 0.005 --workers 2` as a user would, in processes of their own:

    cold    empty NAS_HOME: calibrates, searches, verifies, exports
    blocks  a new run with calibrated blocks, no measured value known
    again   the finished run deleted, everything cached

    python benchmarks/main_job.py [--eps 0.005] [--workers 2] [--repeats 3]

Memory is the largest process's.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from dated import write_result


def run_search(home: Path, workdir: Path, eps: float, workers: int) -> dict[str, Any]:
    """One search in a process of its own: wall seconds, peak memory of the largest child so far (MB), and its JSON."""
    command = [sys.executable, "-c", "from nas.cli.app import main; main()", "search", "--space", "tocsr_unet", "--eps", str(eps), "--workers", str(workers)]
    command += ["--workdir", str(workdir), "--json", "--quiet"]
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "NAS_HOME": str(home)})
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return {"wall_s": round(time.monotonic() - started, 1), "peak_mb": round(peak), "result": json.loads(done.stdout)}


def one_round(eps: float, workers: int) -> dict[str, dict[str, Any]]:
    """The three cases after one another."""
    with tempfile.TemporaryDirectory() as folder:
        home, work = Path(folder) / "home", Path(folder) / "runs"
        cold = run_search(home, work, eps, workers)
        for file in home.glob("evaluations.db*"):
            file.unlink()
        shutil.rmtree(work)
        blocks = run_search(home, work, eps, workers)
        shutil.rmtree(work)
        return {"cold": cold, "blocks": blocks, "again": run_search(home, work, eps, workers)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--eps", type=float, default=0.005)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    rounds = [one_round(options.eps, options.workers) for _ in range(options.repeats)]
    table = {
        case: {
            "wall_s": {"median": statistics.median(r[case]["wall_s"] for r in rounds), "all": [r[case]["wall_s"] for r in rounds]},
            "peak_mb": max(r[case]["peak_mb"] for r in rounds),
            "seconds": rounds[0][case]["result"]["seconds"],
            "n_trials": rounds[0][case]["result"]["n_trials"],
            "n_measured": rounds[0][case]["result"]["n_measured"],
        }
        for case in rounds[0]
    }
    winner = {k: v for k, v in rounds[0]["cold"]["result"]["winners"][0].items() if k != "path"}
    teacher = rounds[0]["cold"]["result"]["teacher"]
    write_result("main_job", {"eps": options.eps, "workers": options.workers, "cases": table, "teacher": teacher, "winner": winner})


if __name__ == "__main__":
    main()
