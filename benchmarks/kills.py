"""Does a search, and a calibration, that is killed with SIGKILL 20 times end like one that was never disturbed?

    python benchmarks/kills.py [--rows searches,workers,calibration] [--optimizers eps_gp,random] [--kills 20] --to benchmarks/results/kills-DATE.json

Every search runs in a process of its own, forked from this one after the imports, and is killed at a random moment: some while it starts, most
between two results. One search has two worker processes of its own, which lose their driver. Counted are acknowledged results that the record
does not hold afterwards, blocks calibrated twice, files under a final name that their manifest does not vouch for, and differences from the
undisturbed run in the list of trials, the winners and the blocks' weights.
"""

import argparse
import json
import os
import random
import signal
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
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
from nas.record import RunDirectory
from nas.space import Choice, Stage
from nas.spaces.network import NetworkSpace

SPACE, EPS, TRIALS = "synthetic:3", (0.003, 0.005), 30


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


def undisturbed(work: Callable[[Callable[[], None]], None]) -> float:
    """Lets the work finish; seconds it took."""
    started = time.monotonic()
    with child(work) as (pid, _):
        _, status = os.waitpid(pid, 0)
    if status:
        sys.exit("the undisturbed run failed")
    return time.monotonic() - started


def killed(work: Callable[[Callable[[], None]], None], chance: random.Random, pause_s: float, start_s: float = 0.0) -> int:
    """Kills the work at a random moment, `start_s` later if before its first result; returns how many results it had acknowledged (-1: it was done before)."""
    with child(work) as (pid, acknowledged):
        wanted = chance.choice([0, 0, 1, 1])
        count = 0
        while count < wanted and os.read(acknowledged, 1):
            count += 1
        time.sleep(chance.uniform(0, pause_s if wanted else pause_s + start_s))
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

        search(space, EPS, workdir=folder, name="run", optimizer=optimizer, trials=TRIALS, workers=workers, on_trial=on_trial)

    return work


def search_row(optimizer: str, kills: int, folder: Path, space: str = SPACE, workers: int = 1) -> dict[str, Any]:
    """What killing one optimizer's search does."""
    work, whole = run_search(folder / "killed", optimizer, space, workers), run_search(folder / "whole", optimizer, space, workers)
    seconds = undisturbed(whole)
    chance, lost, done, hits = random.Random(optimizer), 0, 0, 0
    while hits < kills:
        before = recorded(folder / "killed")
        count = killed(work, chance, 1.5 * seconds / TRIALS / workers**2, start_s=seconds / 2 if workers > 1 else 0.0)
        if count < 0:
            done += 1
            if done > 3:
                break
            continue
        hits += 1
        lost += max(0, before + count - recorded(folder / "killed"))
    undisturbed(work)
    same = contents(folder / "killed") == contents(folder / "whole")
    what = f"search, {optimizer}" + (f", {workers} workers" if workers > 1 else "")
    return {"what": what, "kills": hits, "acknowledged_lost": lost, "identical_end": same, "seconds_undisturbed": round(seconds, 2)}


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
    seconds = undisturbed(run_calibration(folder / "whole"))
    chance, lost, partial, hits = random.Random("calibration"), 0, 0, 0
    for _ in range(4 * kills):
        if hits == kills:
            break
        before = len(blocks(folder / "killed"))
        count = killed(run_calibration(folder / "killed"), chance, 1.5 * seconds / 25)
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


def main() -> None:
    """Prints a row a search and one for the calibration, and writes them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="searches,workers,calibration")
    parser.add_argument("--optimizers", default=",".join(name for name in OPTIMIZERS.names() if name != "optuna"))
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--to", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows = []

    def add(row: dict[str, Any]) -> None:
        rows.append(row)
        print(row, flush=True)

    with tempfile.TemporaryDirectory() as folder:
        if "searches" in asked.rows:
            for optimizer in asked.optimizers.split(","):
                add(search_row(optimizer, asked.kills, Path(folder) / optimizer.replace(":", "-")))
        if "workers" in asked.rows:
            add(search_row("eps_gp", asked.kills, Path(folder) / "workers", f"{Path(__file__).resolve()}:make_space", 2))
        if "calibration" in asked.rows:
            add(calibration_row(asked.kills, Path(folder) / "calibration"))
    if asked.to:
        versions = {package: version(package) for package in ("stage-nas", "torch", "optuna", "numpy")}
        asked.to.write_text(json.dumps({"command": "python benchmarks/kills.py", "versions": versions, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
