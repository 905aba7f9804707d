"""How much of the code do the tests run? Lines and branches of the core (`nas/`), and of everything that is installed.

    python benchmarks/coverage.py                     runs `make test`'s tests under coverage, and those on Ray where it is installed
    python benchmarks/coverage.py --data FILE ...     counts what runs of these tests have written, subprocesses included

Tests that kill processes with SIGKILL are left out: a process that is killed cannot say what it ran.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from dated import write_result

ROOT = Path(__file__).parent.parent
FAST = ("-n", "auto", "-m", "not slow and not gpu and not soak")
RAY = ("-m", "slow", "tests/core/test_ray_workers.py")


def main() -> None:
    """Runs the tests, or takes what they wrote, and writes the shares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=[])
    parser.add_argument("--note", default="", help="What a reader should know of the run.")
    asked = parser.parse_args()
    passed = None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = list(asked.data)
        if not data:
            groups = [FAST, *([RAY] if importlib.util.find_spec("ray") else [])]
            passed = sum(_ran(group, folder / f"group{number}") for number, group in enumerate(groups)) == len(groups)
            data = [str(path) for path in folder.glob("group*")]
        found = _files(data, folder)
    files = {name: content for name, content in found.items() if content["summary"]["num_statements"] and not name.startswith("tests/")}
    core = {name: content for name, content in files.items() if name.startswith("nas/")}
    least = sorted((100 * _lines(content)[0] / _lines(content)[1], name) for name, content in files.items())[:12]
    write_result(
        "coverage",
        {
            "note": asked.note,
            "tests_passed": passed,
            "core": _shares(core),
            "all": _shares(files),
            "least_covered": {name: round(share, 1) for share, name in least},
        },
    )


def _ran(tests: tuple[str, ...], data: Path) -> bool:
    """Whether these tests passed; what they ran is in the file."""
    command = [sys.executable, "-m", "pytest", *tests, "--cov", "--cov-report="]
    return subprocess.run(command, cwd=ROOT, check=False, env={**os.environ, "COVERAGE_FILE": str(data)}).returncode == 0


def _files(data: list[str], folder: Path) -> dict[str, Any]:
    """Coverage's own report on all the data together, by file."""
    together, report = f"--data-file={folder / 'together'}", folder / "report.json"
    for command in (["combine", "-q", "--keep", together, *(str(Path(file).absolute()) for file in data)], ["json", "-q", together, "-o", str(report)]):
        subprocess.run([sys.executable, "-m", "coverage", *command], cwd=ROOT, check=True)
    found: dict[str, Any] = json.loads(report.read_text())["files"]
    return found


def _shares(files: dict[str, Any]) -> dict[str, Any]:
    """Percentages over all files together."""
    shares = {}
    for what, of in (("lines", _lines), ("branches", _branches)):
        covered, total = (sum(pair) for pair in zip(*(of(content) for content in files.values()), strict=True))
        shares[f"{what}_percent"] = round(100 * covered / total, 2)
    return {"files": len(files), **shares}


def _lines(content: dict[str, Any]) -> tuple[int, int]:
    return content["summary"]["covered_lines"], content["summary"]["num_statements"]


def _branches(content: dict[str, Any]) -> tuple[int, int]:
    return content["summary"]["covered_branches"], content["summary"]["num_branches"]


if __name__ == "__main__":
    main()
