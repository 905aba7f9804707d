"""Where benchmark scripts write: a dated JSON file under `benchmarks/results/` with versions and the command."""

import json
import os
import platform
import re
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import torch

from nas.versions import installed

FOLDER = Path(__file__).parent / "results"


def command() -> str:
    """What was typed, as a shell reads it; of absolute paths the last part, the rest is the machine's."""
    parts = [re.sub(r"(^|=)/(?:[^/]+/)*([^/]+)/?$", r"\1\2", part) for part in sys.argv[1:]]
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *parts])


def write_result(name: str, content: dict[str, Any], folder: Path = FOLDER) -> Path:
    """Writes `NAME-DATE.json` into the folder and prints it; a second result of the day replaces the first."""
    about = {
        "benchmark": name,
        "date": time.strftime("%Y-%m-%d"),
        "command": command(),
        "versions": {package: installed(package) for package in ("stage-nas", "torch", "diffusers", "botorch", "numpy")},
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        **({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{about['date']}.json"
    path.write_text(json.dumps({**about, **content}, indent=1) + "\n", encoding="utf-8")
    print(path.read_text(encoding="utf-8"))
    return path
