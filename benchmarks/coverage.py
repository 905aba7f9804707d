"""How much of the code do the fast tests run? Lines and branches of the core (`nas/`), and of everything that is installed.

python benchmarks/coverage.py          runs `make test`'s tests under coverage, subprocesses included
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from dated import write_result

ROOT = Path(__file__).parent.parent


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "coverage.json"
        tests = ["-m", "pytest", "-n", "auto", "-m", "not slow and not gpu and not soak", "--cov", f"--cov-report=json:{report}", "--cov-report="]
        done = subprocess.run([sys.executable, *tests], cwd=ROOT, check=False)
        found: dict[str, Any] = json.loads(report.read_text())["files"]
    files = {name: content for name, content in found.items() if content["summary"]["num_statements"] and not name.startswith("tests/")}
    core = {name: content for name, content in files.items() if name.startswith("nas/")}
    least = sorted((100 * _lines(content)[0] / max(_lines(content)[1], 1), name) for name, content in files.items())[:12]
    write_result(
        "coverage",
        {
            "tests_passed": done.returncode == 0,
            "core": _shares(core),
            "all": _shares(files),
            "least_covered": {name: round(share, 1) for share, name in least},
        },
    )


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
