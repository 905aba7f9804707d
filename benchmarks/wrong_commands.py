"""How long does a wrong command line take to be refused, and is it always one clear line and exit code 2?

    python benchmarks/wrong_commands.py --to benchmarks/results/wrong_commands-DATE.json

Runs the table of wrong command lines of `tests/core/test_cli.py`, each in a process of its own; `torch` tells which of them load it.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.core.test_cli import BAD

CODE = """
import atexit, sys
atexit.register(lambda: print("torch" in sys.modules, file=open("loaded", "w")))
from nas.cli.app import main
main()
"""


def refused(arguments: tuple[str, ...], folder: Path) -> dict[str, Any]:
    """One wrong command line."""
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", CODE, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - started
    loaded = (folder / "loaded").read_text().strip() == "True"
    last = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else ""
    return {
        "arguments": " ".join(arguments), "code": done.returncode, "seconds": round(seconds, 2), "torch": loaded,
        "traceback": "Traceback" in done.stderr, "said": last[:160],
    }  # fmt: skip


def main() -> None:
    """Prints a row a command line and a summary, and writes them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [refused(arguments, Path(folder)) for arguments in BAD]
    light = [row["seconds"] for row in rows if not row["torch"]]
    summary = {
        "command_lines": len(rows), "code_2": sum(row["code"] == 2 for row in rows), "tracebacks": sum(row["traceback"] for row in rows),
        "without_torch": {"count": len(light), "median_s": statistics.median(light), "longest_s": max(light)},
    }  # fmt: skip
    for row in rows:
        print(row)
    print(summary)
    if asked.to:
        asked.to.write_text(json.dumps({"command": "python benchmarks/wrong_commands.py", "summary": summary, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
