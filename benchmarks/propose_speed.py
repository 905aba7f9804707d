"""How much CPU time does one proposal of eps_gp cost, by size of the space and number of eps?

    python benchmarks/propose_speed.py [--trials 30] [--repeats 5]

Synthetic landscapes (seed 0). The log is that of a search with eps_gp itself; timed are the proposals after its last `--repeats` trials, one by one, on one
thread. Prints one line of JSON a case.
"""

import argparse
import json
import statistics
import time
from typing import Any

import torch

from nas.optimizers.eps_gp import EpsGP
from nas.problem import Problem
from nas.progress import Quiet
from nas.protocols import Task
from nas.spaces.synthetic import make_synthetic
from nas.trial import Trial

CASES = [(10, 4, 1), (9, 5, 1), (9, 5, 4), (9, 6, 1), (20, 4, 1), (20, 4, 4), (30, 4, 1)]
"""Stages, choices, number of eps."""
EPS = (0.001, 0.003, 0.005, 0.007)


def measured(task: Task, problem: Problem, n: int) -> tuple[list[Trial], list[float]]:
    """The first trials of a search and the CPU seconds of each proposal."""
    optimizer = EpsGP(problem, delta=0)
    trials: list[Trial] = []
    seconds = []
    for number in range(n):
        start = time.process_time()
        proposed = optimizer.propose(trials)
        seconds.append(time.process_time() - start)
        if not proposed:
            break
        result = task.evaluator.measure(proposed)[0]
        trials.append(Trial(number, proposed[0], problem.costs.of(proposed[0]), result.divergence, result.stderr))
    return trials, seconds


def case(stages: int, choices: int, n_eps: int, n_trials: int, repeats: int) -> dict[str, Any]:
    """One line of the result."""
    task = make_synthetic(0, stages=stages, choices=choices).prepare(Quiet())
    problem = task.problem(EPS[1:2] if n_eps == 1 else EPS[:n_eps])
    trials, seconds = measured(task, problem, n_trials)
    last = seconds[-repeats:]
    return {
        "candidates": float(task.space.n_candidates), "stages": stages, "choices": choices, "n_eps": n_eps, "trials": len(trials),
        "cpu_s_median": round(statistics.median(last), 4), "cpu_s_max": round(max(last), 4), "cpu_s_first": round(seconds[0], 4),
    }  # fmt: skip


def main() -> None:
    """Runs all cases."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for stages, choices, n_eps in CASES:
        print(json.dumps(case(stages, choices, n_eps, options.trials, options.repeats)), flush=True)


if __name__ == "__main__":
    main()
