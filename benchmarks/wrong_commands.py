"""What does it cost to refuse a wrong command line, and is it always one clear line and exit code 2?

    python benchmarks/wrong_commands.py --to benchmarks/results/wrong_commands-DATE.json

Runs the table of wrong command lines of `tests/core/test_cli.py`, each in a process of its own, until it is refused or needs torch (`needs_torch`;
the test runs these to their end). Seconds are of processor time, which a busy machine does not change.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.core.test_cli import BAD

NEEDS_TORCH = 99

CODE = f"""
import os, sys
class NoTorch:
    def find_spec(self, name, *rest):
        if name == "torch":
            os._exit({NEEDS_TORCH})
sys.meta_path.insert(0, NoTorch())
from nas.cli.app import main
main()
"""


def cpu_s() -> float:
    """Processor time of all children so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def refused(arguments: tuple[str, ...], folder: Path) -> dict[str, Any]:
    """One wrong command line."""
    before = cpu_s()
    done = subprocess.run([sys.executable, "-c", CODE, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    said = next((line for line in done.stderr.splitlines() if line.startswith("error:")), done.stderr.strip().splitlines()[-2:-1])
    return {
        "arguments": " ".join(arguments), "needs_torch": done.returncode == NEEDS_TORCH, "code": done.returncode, "cpu_s": round(cpu_s() - before, 2),
        "traceback": "Traceback" in done.stderr, "said": said,
    }  # fmt: skip


def main() -> None:
    """Prints a row a command line and a summary, and writes them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for arguments in BAD:
            rows.append(refused(arguments, Path(folder)))
            print(rows[-1], flush=True)
    light = [row for row in rows if not row["needs_torch"]]
    seconds = [row["cpu_s"] for row in light]
    summary = {
        "command_lines": len(rows), "refused_without_torch": len(light), "code_2": sum(row["code"] == 2 for row in light),
        "tracebacks": sum(row["traceback"] for row in rows), "median_cpu_s": statistics.median(seconds), "longest_cpu_s": max(seconds),
    }  # fmt: skip
    print(summary)
    if asked.to:
        asked.to.write_text(json.dumps({"command": "python benchmarks/wrong_commands.py", "summary": summary, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
