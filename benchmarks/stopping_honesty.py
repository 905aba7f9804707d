"""How often is eps_gp wrong when it stops because "P(a cheaper candidate is feasible) < delta"?

    python benchmarks/stopping_honesty.py --runs 100 --first-seed 5000 [--delta 0.01] [--stages 7] [--choices 4] [--minutes 10] [--jobs 4] [--out FILE]

Runs synthetic landscapes of several kinds in turn (interactions, noise, calibration errors informative or not, losses foreseen well or badly), each
searched at one eps until eps_gp stops or `--trials` are spent. Prints one line of JSON a run (so that a longer run only needs another first seed) and a last
line with, over the runs that stopped: the share that was wrong (a cheaper feasible candidate existed), the mean probability stated, and measurements needed.
"""

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nas.optimizers.eps_gp import EpsGP
from nas.progress import Quiet
from nas.spaces.synthetic import make_synthetic
from nas.trial import Trial, incumbent

KINDS: tuple[dict[str, Any], ...] = (
    {},
    {"informativeness": 0.7},
    {"noise": 0.1},
    {"interaction_spread": 0.35},
    {"informativeness": 0.0},
    {"informativeness": None},
    {"foresight": 0.4},
    {"foresight": 1.0},
    {"foresight": 0.4, "sensitivity": 2.0, "deviation": 0.7, "interaction": 0.0, "interaction_spread": 0.4},
)
EPS = (0.001, 0.003, 0.005, 0.007)


def one_run(seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Searches one landscape and compares the winner at the stop with the true optimum."""
    kind = KINDS[seed % len(KINDS)]
    eps = EPS[seed // len(KINDS) % len(EPS)]
    task = make_synthetic(seed, stages=options.stages, choices=options.choices, **kind).prepare(Quiet())
    problem = task.problem((eps,))
    optimizer = EpsGP(problem, seed, delta=options.delta)
    trials: list[Trial] = []
    while len(trials) < options.trials and (proposed := optimizer.propose(trials)):
        result = task.evaluator.measure(proposed)[0]
        trials.append(Trial(len(trials), proposed[0], problem.costs.of(proposed[0]), result.divergence, result.stderr))
    stopped = len(trials) < options.trials
    winner = incumbent(trials, eps)
    cost = min(problem.cost([problem.space.teacher])[0], np.inf if winner is None else winner.costs[problem.objective])
    divergence = np.array([m.divergence for m in task.evaluator.measure([tuple(c) for c in task.space.enumerate().tolist()])])
    best = problem.cost(task.space.enumerate()[divergence <= eps]).min()
    stated = optimizer.statement(trials)[eps]
    return {
        "seed": seed, "kind": kind, "eps": eps, "trials": len(trials), "stopped": stopped, "p_better": round(stated.p_better, 5),
        "n_cheaper": stated.n_cheaper, "wrong": bool(cost > best * (1 + 1e-9)), "missed": round(float(cost / best - 1), 5),
    }  # fmt: skip


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Rates over the runs that stopped by themselves."""
    stopped = [run for run in runs if run["stopped"]]
    wrong = sum(run["wrong"] for run in stopped)
    return {
        "runs": len(runs), "stopped": len(stopped), "wrong": wrong, "wrong_share": round(wrong / max(1, len(stopped)), 4),
        "stated_mean": round(statistics.fmean([run["p_better"] for run in stopped] or [0.0]), 4),
        "median_trials_at_stop": statistics.median([run["trials"] for run in stopped] or [0]),
        "wrong_by_kind": {json.dumps(kind): sum(run["wrong"] for run in stopped if run["kind"] == kind) for kind in KINDS},
    }  # fmt: skip


def within_time(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The runs that begin before the minutes are over, in the order of their seeds."""
    end = time.monotonic() + 60 * options.minutes
    seeds = range(options.first_seed, options.first_seed + options.runs)
    if options.jobs == 1:
        yield from (one_run(seed, options) for seed in seeds if time.monotonic() < end)
        return
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn"), partial(torch.set_num_threads, 1)) as pool:
        for first in range(0, len(seeds), 4 * options.jobs):
            if time.monotonic() < end:
                yield from pool.map(partial(one_run, options=options), seeds[first : first + 4 * options.jobs])


def main() -> None:
    """Runs until all runs are done or the minutes are over."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--first-seed", type=int, default=5000)
    parser.add_argument("--delta", type=float, default=0.01)
    parser.add_argument("--stages", type=int, default=7)
    parser.add_argument("--choices", type=int, default=4)
    parser.add_argument("--trials", type=int, default=80)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--jobs", type=int, default=1, help="processes of one thread")
    parser.add_argument("--out", type=Path, help="a file to write besides printing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs = []
    for run in within_time(options):
        runs.append(run)
        print(json.dumps(run), flush=True)
    print(json.dumps(summary(runs)), flush=True)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text("".join(json.dumps(line) + "\n" for line in [*runs, summary(runs)]), encoding="utf-8")


if __name__ == "__main__":
    main()
