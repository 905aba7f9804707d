"""How much faster do two local workers of one thread each calibrate than one, and than one process of two threads?

Calibrates the blocks of some stages of the embedded teacher into an empty store, each way in turn, `--repeats` times, workers started before the
clock is. Wall seconds: on a machine whose two cores are not free they say nothing about the workers, so the load before and after is kept beside them.

    python benchmarks/workers.py [--stages down2,down3] [--repeats 1]
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from dated import write_result

from nas.crew import Crew
from nas.executor import CalibrateBlock
from nas.names import resolve_space
from nas.progress import Quiet
from nas.spaces.network import NetworkSpace


def calibrated(stages: list[str], workers: int, threads: int) -> float:
    """Seconds to calibrate the stages' blocks from nothing; the workers' start is left out, since a search starts them once."""
    torch.set_num_threads(max(1, threads // workers))
    with tempfile.TemporaryDirectory() as folder:
        os.environ["NAS_HOME"] = folder
        space = resolve_space("tocsr_unet")
        assert isinstance(space, NetworkSpace)
        missing = [names for names in space.missing_blocks() if names[0] in stages]
        crew = Crew(workers, threads=threads)
        with crew.open("tocsr_unet", {}, space.fingerprint()) as executor:
            if executor is not None:
                for future in [executor.submit(_ready) for _ in range(workers)]:
                    future.result()
            started = time.monotonic()
            if executor is None:
                chosen = [stage for stage in space.stages if stage.name in stages]
                space.calibrator().run(tuple(chosen), Quiet())
            else:
                for block in [executor.submit(CalibrateBlock(*names)) for names in missing]:
                    block.result()
            wall = time.monotonic() - started
        assert len(list(Path(folder).glob("blocks/??/*/manifest.json"))) == len(missing)
    return wall


def _ready(place: Any) -> None:
    """A task that makes its worker start and hold its features; long enough that both workers get one."""
    time.sleep(1)
    place.space._features.get(place.space.stages[0].name, Quiet())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", default="down2,down3")
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args()
    stages = options.stages.split(",")
    ways = {"one worker, one thread": (1, 1), "two workers, one thread each": (2, 2), "one worker, two threads": (1, 2)}
    load = os.getloadavg()[0]
    rounds = [{way: calibrated(stages, *numbers) for way, numbers in ways.items()} for _ in range(options.repeats)]
    median = {way: statistics.median(r[way] for r in rounds) for way in ways}
    write_result(
        "workers",
        {
            "stages": stages,
            "load before": load,
            "load after": os.getloadavg()[0],
            "wall_s": rounds,
            "two workers against one": median["one worker, one thread"] / median["two workers, one thread each"],
            "two threads against one": median["one worker, one thread"] / median["one worker, two threads"],
        },
    )


if __name__ == "__main__":
    main()
