"""Does a search, and a calibration, that is killed with SIGKILL 20 times end like one that was never disturbed?

    python benchmarks/kills.py [--rows searches,workers,calibration] [--optimizers eps_gp,random] [--kills 20] [--processes 12] --to FILE.json

Every search runs in a process of its own, forked from this one after the imports, and is killed at a random moment: some while it starts, most
between two results. A search that ends before its last kill is followed by another one. Each optimizer also searches with two worker processes,
which lose their driver; they calibrate and measure a network. Counted are acknowledged results that the record does not hold afterwards, blocks
calibrated twice, files under a final name that their manifest does not vouch for, and differences from the undisturbed run in the list of
trials, the winners and the blocks' weights. With several `--processes`, as many rows are made at a time.
"""

import argparse
import json
import os
import platform
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nas.blocks.calibration import CalibrationSettings
from nas.blocks.store import BlockStore
from nas.data import Samples, Splits
from nas.errors import NasError
from nas.graph import StageGraph, Step
from nas.job import search
from nas.names import OPTIMIZERS
from nas.progress import Quiet
from nas.run_directory import RunDirectory
from nas.space import Choice, Stage
from nas.spaces.network import NetworkSpace

SPACE, EPS, TRIALS = "synthetic:3", (0.003, 0.005), {1: 30, 2: 12}


@dataclass(frozen=True)
class Narrow:
    """Another hidden width."""

    hidden: int

    @property
    def spec(self) -> dict[str, Any]:
        """What decides the block."""
        return {"recipe": "narrow", "hidden": self.hidden}

    def build(self, teacher: nn.Module) -> nn.Module:
        """A block of that width."""
        del teacher
        return layer(self.hidden)


def layer(hidden: int, width: int = 24) -> nn.Module:
    """A block of two linear layers."""
    return nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, width))


def network(home: Path) -> NetworkSpace:
    """Five stages with five surrogate blocks each."""
    torch.manual_seed(0)
    steps = tuple(Step(f"s{k}", ("h",), ("h",), layer(48).eval()) for k in range(5))
    choices = (Choice("teacher"), *(Choice(f"n{hidden}", Narrow(hidden)) for hidden in (32, 24, 16, 8, 4)))
    sets = [Samples({"h": torch.randn(256, 24)}, 1000 * number + torch.arange(256)) for number in range(3)]
    stages = tuple(Stage(step.name, choices) for step in steps)
    return NetworkSpace("kills", StageGraph(("h",), steps, "h"), stages, Splits(*sets), home=home, calibration=CalibrationSettings(max_steps=50))


def make_space() -> NetworkSpace:
    """The network, for a search that names it and workers that make it themselves."""
    return network(Path(os.environ["NAS_HOME"]))


@contextmanager
def child(work: Callable[[Callable[[], None]], None]) -> Iterator[tuple[int, int]]:
    """A process that does the work and acknowledges each result with a byte; yields its id and the pipe's end."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = 1
        try:
            work(lambda: os.write(writer, b".") and None)
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    try:
        yield pid, reader
    finally:
        os.close(reader)


def undisturbed(work: Callable[[Callable[[], None]], None]) -> tuple[float, float]:
    """Lets the work finish; seconds until its first result, and in all."""
    started, first = time.monotonic(), 0.0
    with child(work) as (pid, acknowledged):
        while os.read(acknowledged, 1):
            first = first or time.monotonic() - started
        _, status = os.waitpid(pid, 0)
    if status:
        sys.exit("the undisturbed run failed")
    return first, time.monotonic() - started


def killed(work: Callable[[Callable[[], None]], None], chance: random.Random, start_s: float, pause_s: float) -> int:
    """Kills the work within `start_s`, or within `pause_s` after its first result; returns how many it had acknowledged (-1: it was done before)."""
    with child(work) as (pid, acknowledged):
        wanted = chance.choice([0, 0, 1, 1])
        count = 0
        while count < wanted and os.read(acknowledged, 1):
            count += 1
        time.sleep(chance.uniform(0, pause_s if wanted else start_s))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        while os.read(acknowledged, 1):
            count += 1
    return count if os.WIFSIGNALED(status) else -1


def run_search(folder: Path, optimizer: str, space: str = SPACE, workers: int = 1) -> Callable[[Callable[[], None]], None]:
    """A search as work."""

    def work(acknowledge: Callable[[], None]) -> None:
        os.environ["NAS_HOME"] = str(folder / "home")
        known = -1

        def on_trial(study: Any) -> None:
            nonlocal known
            n = len(study.trials)
            if known >= 0:
                for _ in range(n - known):
                    acknowledge()
            known = n

        search(space, EPS, workdir=folder, name="run", optimizer=optimizer, trials=TRIALS[workers], workers=workers, on_trial=on_trial)

    return work


def search_row(optimizer: str, kills: int, folder: Path, space: str = SPACE, workers: int = 1) -> dict[str, Any]:
    """What killing one optimizer's search does."""
    first, seconds = undisturbed(run_search(folder / "whole", optimizer, space, workers))
    trials = len(contents(folder / "whole")[0])
    chance, lost, hits, searches, same = random.Random(optimizer), 0, 0, 0, True
    while hits < kills:
        searches += 1
        place = folder / f"killed{searches}"
        work = run_search(place, optimizer, space, workers)
        while hits < kills:
            before = recorded(place)
            count = killed(work, chance, first, 1.5 * (seconds - first) / trials)
            if count < 0:
                break
            hits += 1
            lost += max(0, before + count - recorded(place))
        undisturbed(work)
        same = same and contents(place) == contents(folder / "whole")
    what = f"search, {optimizer}" + (f", {workers} workers" if workers > 1 else "")
    return {
        "what": what, "kills": hits, "searches": searches, "trials": trials, "acknowledged_lost": lost, "identical_end": same,
        "seconds_undisturbed": round(seconds, 2),
    }  # fmt: skip


def recorded(folder: Path) -> int:
    """Trials in the record so far."""
    try:
        with RunDirectory(folder / "run").record(read_only=True) as record:
            return len(record.trials())
    except (NasError, sqlite3.Error):  # killed before the record was made
        return 0


def contents(folder: Path) -> tuple[list[tuple[Any, ...]], list[Any]]:
    """Trials and winners, without times and paths."""
    with RunDirectory(folder / "run").record(read_only=True) as record:
        trials = [(t.number, t.candidate, dict(t.costs), t.divergence, t.stderr, t.n_samples, t.state) for t in record.trials()]
        return trials, [{**winner, "path": None} for winner in record.fact("result")["winners"]]


def run_calibration(home: Path) -> Callable[[Callable[[], None]], None]:
    """A calibration as work; a block that is calibrated although the store holds it is written to `again`."""

    def work(acknowledge: Callable[[], None]) -> None:
        put = BlockStore.put

        def counted(store: BlockStore, key: str, *content: Any) -> None:
            if key in store:
                with (home / "again").open("a") as file:
                    file.write(key + "\n")
            put(store, key, *content)
            acknowledge()

        BlockStore.put = counted  # type: ignore[method-assign]
        home.mkdir(parents=True, exist_ok=True)
        network(home).prepare(Quiet())

    return work


def calibration_row(kills: int, folder: Path) -> dict[str, Any]:
    """What killing a calibration does."""
    first, seconds = undisturbed(run_calibration(folder / "whole"))
    chance, lost, partial, hits = random.Random("calibration"), 0, 0, 0
    for _ in range(4 * kills):
        if hits == kills:
            break
        before = len(blocks(folder / "killed"))
        count = killed(run_calibration(folder / "killed"), chance, 0.6 * first, 0.75 * (seconds - first) / 25)
        if count < 0:
            break
        hits += 1
        lost += max(0, before + count - len(blocks(folder / "killed")))
        partial += damaged(folder / "killed")
    undisturbed(run_calibration(folder / "killed"))
    again = folder / "killed" / "again"
    return {
        "what": "calibration, 25 blocks", "kills": hits, "acknowledged_lost": lost, "recomputed": len(again.read_text().split()) if again.exists() else 0,
        "partial_files": partial, "identical_end": blocks(folder / "killed") == blocks(folder / "whole"), "seconds_undisturbed": round(seconds, 2),
    }  # fmt: skip


def blocks(home: Path) -> dict[str, bytes]:
    """Key -> the file of weights."""
    store = BlockStore(home / "blocks")
    return {key: (home / "blocks" / key[:2] / key / "block.safetensors").read_bytes() for key in list(store.keys())}


def damaged(home: Path) -> int:
    """Blocks under a final name that their manifest does not vouch for."""
    store, found = BlockStore(home / "blocks"), 0
    for key in list(store.keys()):
        try:
            store.check(key)
        except NasError:
            found += 1
    return found


def rows_here(kinds: list[str], optimizers: list[str], kills: int) -> Iterator[dict[str, Any]]:
    """The rows asked for, one after the other."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for optimizer in optimizers:
            place = folder / optimizer.replace(":", "-")
            if "searches" in kinds:
                yield search_row(optimizer, kills, place)
            if "workers" in kinds:
                yield search_row(optimizer, kills, place / "workers", f"{Path(__file__).resolve()}:make_space", 2)
        if "calibration" in kinds:
            yield calibration_row(kills, folder / "calibration")


def rows_apart(kinds: list[str], optimizers: list[str], kills: int, processes: int) -> Iterator[dict[str, Any]]:
    """The same rows, each by a process of its own, so many at a time."""
    each: list[tuple[str, str]] = [(kind, name) for kind in ("workers", "searches") if kind in kinds for name in optimizers]
    each += [("calibration", optimizers[0])] if "calibration" in kinds else []
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(processes) as pool:

        def made(number: int) -> dict[str, Any]:
            kind, name = each[number]
            path = Path(folder) / f"{number}.json"
            command = [sys.executable, __file__, "--rows", kind, "--optimizers", name, "--kills", str(kills), "--to", str(path)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            row: dict[str, Any] = json.loads(path.read_text())["rows"][0]
            return row

        yield from pool.map(made, range(len(each)))


def main() -> None:
    """Prints a row a search and one for the calibration, and writes them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="searches,workers,calibration")
    parser.add_argument("--optimizers", default=",".join(name for name in OPTIMIZERS.names() if name != "optuna"))
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--to", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    kinds, optimizers = asked.rows.split(","), asked.optimizers.split(",")
    made = rows_here(kinds, optimizers, asked.kills) if asked.processes == 1 else rows_apart(kinds, optimizers, asked.kills, asked.processes)
    rows = []
    for row in made:
        rows.append(row)
        print(row, flush=True)
    if asked.to:
        about = {"command": " ".join(["python", "benchmarks/kills.py", *sys.argv[1:]]), "date": time.strftime("%Y-%m-%d"), "python": platform.python_version()}
        versions = {package: version(package) for package in ("stage-nas", "torch", "optuna", "numpy")}
        asked.to.write_text(json.dumps({**about, "versions": versions, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
