"""How few measurements could any method need to come within 1 % of the optimum? What `eps_gp` would need if it were told more than it is.

    python benchmarks/oracles.py --family informative --instances 16

Synthetic instances of `arena.py`, with seeds for tuning. Told for free: nothing; one swap a stage (the block that saves most), so each stage's
sensitivity; every single swap; all but each candidate's own deviation, so the exact probability that it is feasible (acquisition as in `eps_gp`).
Prints one line of JSON an instance and writes `results/oracles_FAMILY-DATE.json`.
"""

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import arena
import numpy as np
import torch
from dated import write_result
from scipy.special import ndtr

from nas.compare import WITHIN, optimal_cost
from nas.optimizers.acquisition import POWER
from nas.optimizers.eps_gp import EpsGP
from nas.problem import Floats, Problem
from nas.progress import Quiet
from nas.protocols import Task
from nas.space import Candidate
from nas.spaces.landscape import Landscape
from nas.spaces.synthetic import make_synthetic
from nas.table import outer_sum
from nas.trial import Trial, incumbent

KINDS: dict[str, dict[str, Any]] = {"informative": {"stages": 10, "noise": 0.03}, "noisy": {"stages": 8, "noise": 0.2}}
"""As in `arena.SYNTHETIC`."""


def good_enough(problem: Problem, optimum: float) -> float:
    """The cost at 1 % regret."""
    teacher = float(problem.cost([problem.space.teacher])[0])
    return optimum + WITHIN * (teacher - optimum)


def told(task: Task, problem: Problem, free: Sequence[Candidate], limit: int) -> int | None:
    """Measurements of `eps_gp` to 1 % after free ones; None above `limit`."""
    goal, optimizer = good_enough(problem, optimal_cost(task, problem)), EpsGP(problem, delta=0)
    trials: list[Trial] = []
    queue = list(free)
    while len(trials) < len(free) + limit:
        candidate = queue.pop(0) if queue else optimizer.propose(trials)[0]
        divergence = task.evaluator.measure([candidate])[0].divergence
        trials.append(Trial(len(trials), candidate, problem.costs.of(candidate), divergence))
        best = incumbent(trials, problem.eps[0])
        if best is not None and best.costs[problem.objective] <= goal:
            return max(0, len(trials) - len(free))
    return None


def single_swaps(problem: Problem) -> list[Candidate]:
    """Every block alone, those that save most last within each stage."""
    sizes, costs = problem.space.sizes, problem.costs.by_choice[problem.objective]
    blocks = [(s, int(k)) for s, size in enumerate(sizes) for k in 1 + np.argsort(-costs[s, 1:size], kind="stable")]
    return [tuple(k if t == s else 0 for t in range(len(sizes))) for s, k in blocks]


def all_but_noise(landscape: Landscape, clean: Landscape, costs: Floats, eps: float, noise: float, limit: int) -> int | None:
    """Measurements to 1 % for whom only each candidate's own deviation is unknown; None above `limit`."""
    cost = outer_sum(costs, landscape.groups[0])
    divergence, x = landscape.of_x(landscape.terms[0]), clean.terms[0]
    divergence[0], optimum = 0.0, cost[divergence <= eps].min()
    distance = math.log(eps) - np.log(landscape.of_x(x))
    likely = ndtr(distance / ((1 + landscape.compounding) * noise))
    likely[0], best = 0.0, cost[0]
    for count in range(1, limit + 1):
        pick = int(np.argmax(np.maximum(best - cost, 0.0) ** POWER * likely))
        likely[pick] = 0.0
        best = min(best, cost[pick]) if divergence[pick] <= eps else best
        if best <= optimum + WITHIN * (cost[0] - optimum):
            return count
    return None


def n_good_enough(landscape: Landscape, problem: Problem) -> int:
    """How many candidates are feasible at a cost within 1 % of the optimum."""
    cost = outer_sum(problem.costs.by_choice[problem.objective], landscape.groups[0])
    feasible = landscape.of_x(landscape.terms[0]) <= problem.eps[0]
    optimum = cost[feasible].min()
    return int((cost[feasible] <= optimum + WITHIN * (cost[0] - optimum)).sum())


def measure(family: str, seed: int, eps: float, limit: int) -> dict[str, Any]:
    """One instance under every oracle."""
    kind = KINDS[family]
    space, clean = make_synthetic(seed, **kind), make_synthetic(seed, **(kind | {"noise": 0.0}))
    task = space.prepare(Quiet())
    problem = task.problem((eps,))
    swaps = single_swaps(problem)
    strongest = list({int(np.argmax(swap)): swap for swap in swaps}.values())
    unspoilt = replace(clean.landscape, middle=space.landscape.middle)
    return {
        "family": family, "seed": seed, "eps": eps, "within 1 %": n_good_enough(space.landscape, problem),
        "told nothing": told(task, problem, (), limit),
        "told one swap a stage": told(task, problem, strongest, limit),
        "told every swap": told(task, problem, swaps, limit),
        "told all but noise": all_but_noise(space.landscape, unspoilt, task.costs.by_choice["params"], eps, kind["noise"], limit),
    }  # fmt: skip


def summary(rows: Sequence[dict[str, Any]], limit: int) -> dict[str, Any]:
    """For each oracle: geometric mean and median of the measurements (never counts as `limit` + 1), and how many got there."""
    out: dict[str, Any] = {"instances with one candidate within 1 %": sum(row["within 1 %"] == 1 for row in rows)}
    for oracle in (name for name in rows[0] if name.startswith("told")):
        counts = [limit + 1 if row[oracle] is None else row[oracle] for row in rows]
        mean = math.exp(statistics.fmean(math.log(max(1, count)) for count in counts))
        out[oracle] = {"geometric mean": round(mean, 1), "median": statistics.median(counts), "got there": sum(c <= limit for c in counts), "of": len(rows)}
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", choices=KINDS, default="informative")
    parser.add_argument("--instances", type=int, default=16)
    parser.add_argument("--first-seed", type=int, default=400, help="of the instances; reported ones begin at 1000")
    parser.add_argument("--trials", type=int, default=50)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for number in range(options.instances):
        rows.append(measure(options.family, options.first_seed + number, arena.EPS[number % len(arena.EPS)], options.trials))
        print(json.dumps(rows[-1]), flush=True)
    write_result(f"oracles_{options.family}", {"summary": summary(rows, options.trials), "instances": rows})


if __name__ == "__main__":
    main()
