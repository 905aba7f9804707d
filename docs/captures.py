"""Draws docs/images/terminal-*.svg: what commands look like on a terminal, run for real.

python docs/captures.py
"""

import io
import os
import pty
import re
import subprocess
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

IMAGES = Path(__file__).parent / "images"
WIDTH = 112
REDRAWN = re.compile(r"\r(?:\x1b\[2K)?(?:\x1b\[1A\x1b\[2K)+")
"""How the live view takes back a frame."""


def shown(command: str, folder: str) -> list[str]:
    """What the command writes to a terminal, apart by frames of the live view."""
    driver, terminal = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(WIDTH), "LINES": "60", "TERM": "xterm-256color"}
    process = subprocess.Popen(command.split(), stdout=terminal, stderr=terminal, env=environment, cwd=folder)
    os.close(terminal)
    content = b""
    try:
        while part := os.read(driver, 65536):
            content += part
    except OSError:  # the other end is closed
        pass
    if process.wait():
        raise SystemExit(f"{command} ended with exit code {process.returncode}:\n{content.decode()}")
    return REDRAWN.split(content.decode().replace("\r\n", "\n"))


def draw(name: str, command: str, text: str) -> None:
    """Writes one picture."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi(re.sub(r"\x1b\[\?25[lh]", "", text).strip("\n")))
    console.save_svg(str(IMAGES / f"terminal-{name}.svg"), title=command)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        search = "nas search --space tocsr_unet --eps 0.003 --eps 0.005 --name first"
        frames = shown(search + " --threads 1", folder)
        draw("live", search, frames[2 * len(frames) // 3])
        draw("search", search, frames[-1])
        for name, command in (("explain", "nas explain runs/first --eps 0.005"), ("error", "nas search --space tocsr_unte --eps 0.005")):
            try:
                draw(name, command, shown(command, folder)[-1])
            except SystemExit as wrong:
                draw(name, command, str(wrong).split("\n", 1)[1])
        compare = "nas compare --space synthetic:3 --eps 0.01 --optimizers eps_gp,optuna:tpe,random --seeds 3 --trials 20"
        draw("compare", compare, shown(compare, folder)[-1])


if __name__ == "__main__":
    main()
