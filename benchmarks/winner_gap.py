"""How far is the winner of the main job from the best that 20 times as many measurements find?

The default optimizer searches `tocsr_unet` on the embedded teacher. Then random search and local search, which do not know its winner,
get ten times as many measurements each on the same problem. Gap = winner's cost / best cost of all - 1.

    python benchmarks/winner_gap.py [--eps 0.005 ...] [--factor 20]
"""

import argparse
from typing import Any

import torch
from dated import write_result

from nas.names import resolve_optimizer, resolve_space
from nas.progress import Quiet
from nas.protocols import Task
from nas.study import Study


def searched(task: Task, eps: float, optimizer: str, trials: int) -> Study:
    """A finished study in memory."""
    problem = task.problem((eps,))
    study = Study(problem, resolve_optimizer(optimizer, problem, seed=0), task.evaluator)
    study.run(trials)
    return study


def gap(task: Task, eps: float, trials: int, factor: int) -> dict[str, Any]:
    """The three searches at one eps and the gap between them."""
    own = searched(task, eps, "eps_gp", trials)
    n = len(own.trials)
    found = {"eps_gp": own} | {name: searched(task, eps, name, n * factor // 2) for name in ("random", "local")}
    best = {name: study.incumbent(eps) for name, study in found.items()}
    params = {name: trial.costs["params"] if trial else None for name, trial in best.items()}
    known = [value for value in params.values() if value is not None]
    winner = params["eps_gp"]
    return {
        "eps": eps,
        "measurements": {name: len(study.trials) for name, study in found.items()},
        "params": params,
        "gap": None if winner is None else winner / min(known) - 1,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--eps", type=float, nargs="+", default=[0.005])
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--factor", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    task = resolve_space("tocsr_unet").prepare(Quiet())
    rows = [gap(task, eps, options.trials, options.factor) for eps in options.eps]
    write_result("winner_gap", {"factor": options.factor, "rows": rows})


if __name__ == "__main__":
    main()
