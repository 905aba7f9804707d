"""What does racing over samples save? The same searches of `tocsr_unet` with and without it: sample evaluations, and whether the winners are the same.

    python benchmarks/racing.py [--trials 40] [--threads 1]

Without racing every candidate is measured on all samples of the `measure` set; with it only until its verdict at the eps is clear (`evaluators/divergence.py`).
Pairs of one optimizer, seed, eps and objective; both halves of a pair in this process, values from the same cache.
"""

import argparse
import statistics
from collections.abc import Sequence
from typing import Any

import torch
from dated import write_result

from nas.names import optimizer_factory
from nas.progress import Quiet
from nas.protocols import Evaluator, Task
from nas.space import Candidate
from nas.spaces.tocsr import tocsr_unet
from nas.study import Study
from nas.trial import Measurement

EPS = (0.001, 0.002, 0.003, 0.005, 0.007)
PEERS = (("eps_gp", (0,)), ("local", (0,)), ("random", (0,)))


class OnAllSamples:
    """An evaluator that never races."""

    def __init__(self, evaluator: Evaluator) -> None:
        self._evaluator = evaluator

    def measure(self, candidates: Sequence[Candidate], eps: Sequence[float] = ()) -> list[Measurement]:
        """Measured on all samples, whatever the eps."""
        del eps
        return self._evaluator.measure(candidates)


def run(task: Task, optimizer: str, seed: int, eps: float, objective: str, racing: bool, trials: int) -> dict[str, Any]:
    """One search: its winner and how many samples its measurements took."""
    problem = task.problem((eps,), objective)
    evaluator = task.evaluator if racing else OnAllSamples(task.evaluator)
    study = Study(problem, optimizer_factory(optimizer)(problem, seed), evaluator, verifier=task.verifier)
    study.run(trials)
    winner = study.winner(eps)
    return {
        "n_trials": len(study.trials),
        "samples": sum(trial.n_samples for trial in study.trials),
        "winner": task.space.decode(winner.trial.candidate) if winner.trial else None,
        "cost": winner.trial.costs[objective] if winner.trial else None,
    }


def main() -> None:
    """Writes `racing-DATE.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    task = tocsr_unet().prepare(Quiet())
    rows = []
    for optimizer, seeds in PEERS:
        for seed in seeds:
            for eps in EPS:
                for objective in ("params", "macs"):
                    pair = {racing: run(task, optimizer, seed, eps, objective, racing, asked.trials) for racing in (False, True)}
                    saved = pair[False]["samples"] / pair[True]["samples"]
                    same = pair[False]["winner"] == pair[True]["winner"]
                    row = {"optimizer": optimizer, "seed": seed, "eps": eps, "objective": objective, "saved": round(saved, 2), "same_winner": same}
                    rows.append({**row, "all_samples": pair[False], "racing": pair[True]})
                    print(row, flush=True)
    summary = {}
    for optimizer, _ in PEERS:
        own = [row for row in rows if row["optimizer"] == optimizer]
        low, middle, high = statistics.quantiles([row["saved"] for row in own], n=4)
        summary[optimizer] = {"pairs": len(own), "saved": {"q25": low, "median": middle, "q75": high}, "same_winner": sum(r["same_winner"] for r in own)}
    print(summary)
    write_result("racing", {"summary": summary, "samples_of_a_full_measurement": len(tocsr_unet().data.measure), "rows": rows})


if __name__ == "__main__":
    main()
