"""What do the examples find, and how long do they take?

Runs each of `examples/0*.py` in a process of its own on an empty cache, one after the other, as a reader would: set-up, training of the teacher,
calibration, search and check are all in the seconds.

    python benchmarks/examples.py [--threads 2] [--to FOLDER]
"""

import argparse
import ast
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from dated import FOLDER, write_result

EXAMPLES = Path(__file__).parents[1] / "examples"


def cpu_s() -> float:
    """Processor time of all children so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def outcome(example: Path, threads: int) -> dict[str, Any]:
    """What an example prints, and its wall and processor seconds."""
    started, before = time.monotonic(), cpu_s()
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "NAS_HOME": f"{folder}/home", "OMP_NUM_THREADS": str(threads)}
        done = subprocess.run([sys.executable, str(example)], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{example.name} failed:\n{done.stderr}")
    found = ast.literal_eval(done.stdout.strip().splitlines()[-1])
    return {"found": found, "wall_s": round(time.monotonic() - started, 1), "cpu_s": round(cpu_s() - before, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--to", type=Path, default=FOLDER, help="folder of the result")
    asked = parser.parse_args()
    rows = {}
    for example in sorted(EXAMPLES.glob("0*.py")):
        rows[example.stem] = outcome(example, asked.threads)
        print(example.stem, rows[example.stem], flush=True)
    write_result("examples", {"threads": asked.threads, "examples": rows}, asked.to)


if __name__ == "__main__":
    main()
