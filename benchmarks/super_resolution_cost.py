"""What does a 512 x 512 result cost: seconds and peak memory, one step against many, the compact U-Net against the full teacher, and bicubic?

Each row in a process of its own. The teacher's U-Net is made conditional and not trained further: its time does not depend on its weights.

    python benchmarks/super_resolution_cost.py [--many 15] [--threads 2]
"""

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from dated import write_result

from nas.spaces.tocsr.assets import shipped_pipeline
from nas.spaces.tocsr.sr.conditional import conditional_unet
from nas.spaces.tocsr.sr.evaluate import System, bicubic_up, parts, system_of
from nas.spaces.tocsr.sr.images import FACTOR
from nas.spaces.tocsr.sr.pipeline import TOCSRPipeline
from nas.spaces.tocsr.teacher import load_teacher

SIZE, REPEATS = 512, 5


def measured(which: str, steps: int) -> dict[str, float]:
    """Median seconds after a first call, and peak resident memory before and after, of this process."""
    system: System = bicubic_up
    costs: dict[str, float] = {}
    if which != "bicubic":
        pipeline = TOCSRPipeline.from_pretrained(shipped_pipeline())
        if which == "teacher":
            pipeline.register_modules(multistep=conditional_unet(load_teacher().unet).eval(), unet=None)
        pipeline.set_progress_bar_config(disable=True)
        system = system_of(pipeline, steps)
        costs = {f"{part.name} macs": part.macs for part in parts(pipeline, SIZE)} | {f"{part.name} params": part.params for part in parts(pipeline, SIZE)}
    low = np.random.default_rng(0).integers(0, 256, (SIZE // FACTOR, SIZE // FACTOR, 3), dtype=np.uint8)
    before = peak_mb()
    system(low)
    seconds = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        system(low)
        seconds.append(time.perf_counter() - begun)
    return {"seconds": float(np.median(seconds)), "seconds_least": min(seconds), "peak_mb": peak_mb(), "loaded_mb": before, **costs}


def peak_mb() -> float:
    """Of this process alone (`ru_maxrss` would count the parent it was forked from)."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) / 1024 if found else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--many", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--row", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    if asked.row:
        print(json.dumps(measured(asked.row[0], int(asked.row[1]))))
        return
    rows = []
    for which, steps in (("bicubic", 0), ("compact", 1), ("compact", asked.many), ("teacher", 1), ("teacher", asked.many)):
        command = [sys.executable, __file__, "--row", which, str(steps), "--threads", str(asked.threads)]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        rows.append({"which": which, "steps": steps, **json.loads(printed.splitlines()[-1])})
        print(rows[-1], flush=True)
    write_result("super_resolution_cost", {"size": SIZE, "repeats": REPEATS, "threads": asked.threads, "rows": rows})


if __name__ == "__main__":
    main()
