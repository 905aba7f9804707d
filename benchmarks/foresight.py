"""How well are the losses of blocks foreseen, what does it cost, and how many measurements does it save? On networks all of whose candidates are measured.

    python benchmarks/foresight.py [--threads 1]

Networks: `tocsr_table`, and the spaces of five examples (trained, calibrated and measured here in a few minutes: KL divergences of classifiers, squared
differences of a regression and of a denoiser). For each:

- the logs of measured over expected losses of single swaps: their mean (common to all), the spread between stages, and the spread within stages; beside
  them the spread of logs of measured losses over calibration errors;
- seconds to foresee, and seconds of the teacher and a surrogate of every stage measured on all samples;
- measurements of `eps_gp` to 1 % regret with and without foreseen losses, at eps that none of its settings were chosen on.
"""

import argparse
import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dated import FOLDER, write_result

from nas.compare import compare
from nas.evaluators.cache import EvaluationCache
from nas.names import resolve_space
from nas.optimizers.eps_gp import EpsGP
from nas.problem import Floats
from nas.progress import Quiet
from nas.protocols import Task
from nas.spaces.network import Assembly, NetworkSpace
from nas.spaces.table import TableEvaluator
from nas.spaces.tocsr.tabulated import measured_space, tocsr_table
from nas.table import Table

EXAMPLES = Path(__file__).parents[1] / "examples"
NAMES = ("01_cnn", "02_transformer", "03_dit", "04_own_block", "own_library")
SHARES = (0.03, 0.07, 0.15, 0.3)
"""Shares of the candidates that are feasible at the eps of the examples."""
TABLE_EPS = (0.001, 0.003, 0.005, 0.007)


def measured(task: Task) -> Task:
    """The task with every candidate measured once."""
    candidates = [tuple(row) for row in task.space.enumerate().tolist()]
    values = [m.divergence for m in task.evaluator.measure(candidates)]
    divergence = np.array([math.inf if value is None else value for value in values])
    table = Table(task.space.sizes, divergence, task.costs, task.calibration_errors)
    return Task(task.space, task.costs, TableEvaluator(table), task.calibration_errors, task.expected_losses)


def errors(task: Task, told: Floats) -> dict[str, float]:
    """Logs of measured over told losses of single swaps: mean, spread between stages and within."""
    found: list[list[float]] = []
    for s, size in enumerate(task.space.sizes):
        alone = [tuple(k if t == s else 0 for t in range(len(task.space.sizes))) for k in range(1, size)]
        values = [m.divergence or 0.0 for m in task.evaluator.measure(alone)]
        logs = [math.log(value / told[s, k]) for k, value in enumerate(values, 1) if value > 0 and told[s, k] > 0]
        found += [logs] if logs else []
    means = [float(np.mean(logs)) for logs in found]
    within = [float(np.var(logs, ddof=1)) for logs in found if len(logs) > 1]
    return {"common": float(np.mean(means)), "between_stages": float(np.std(means)), "within_stages": math.sqrt(float(np.mean(within or [0.0])))}


def seconds(space: NetworkSpace, task: Task) -> dict[str, float]:
    """Of foreseeing again, and of measuring the teacher and one candidate of surrogates alone, on all samples without any cache."""
    blocks = space.calibrator().run(space.stages, Quiet())
    assembly = Assembly(space, blocks)
    assembly._cache = EvaluationCache(Path(tempfile.mkdtemp()) / "evaluations.db")
    started = time.perf_counter()
    assembly.expected_losses(Quiet())
    foreseen = time.perf_counter() - started
    evaluator, took = assembly.evaluator(space.data.measure), []
    for candidate in ((0,) * len(task.space.sizes), (1,) * len(task.space.sizes)):
        started = time.perf_counter()
        evaluator.outputs(candidate)
        took.append(time.perf_counter() - started)
    return {"foresee_s": foreseen, "teacher_s": took[0], "surrogates_s": took[1]}


def searched(task: Task, eps: Sequence[float]) -> list[int | None]:
    """Measurements to 1 % regret at each eps; None where 50 do not suffice."""
    rows = compare(task, eps, {"eps_gp": EpsGP}, 1, 50)
    return [int(row.evals_to_1pct[0]) if math.isfinite(row.evals_to_1pct[0]) else None for row in rows]


def row(space: NetworkSpace, task: Task, eps: Sequence[float]) -> dict[str, Any]:
    """All figures of one network."""
    assert task.expected_losses is not None
    assert task.calibration_errors is not None
    blind = Task(task.space, task.costs, task.evaluator, task.calibration_errors)
    return {
        "candidates": task.space.n_candidates,
        "log_errors": errors(task, task.expected_losses),
        "log_errors_of_calibration": errors(task, task.calibration_errors),
        "seconds": seconds(space, task),
        "eps": list(eps),
        "measurements": {"foreseen": searched(task, eps), "calibration_errors_alone": searched(blind, eps)},
    }


def main() -> None:
    """Writes `foresight-DATE.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--to", type=Path, default=FOLDER, help="folder of the result")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    rows = {"tocsr_table": row(measured_space(), tocsr_table().prepare(Quiet()), TABLE_EPS)}
    print("tocsr_table", rows["tocsr_table"], flush=True)
    for name in NAMES:
        space = resolve_space(str(EXAMPLES / f"{name}.py"))
        assert isinstance(space, NetworkSpace)
        task = measured(space.prepare(Quiet()))
        divergence = np.sort([m.divergence for m in task.evaluator.measure([tuple(c) for c in task.space.enumerate().tolist()])])
        rows[name] = row(space, task, [float(np.quantile(divergence[1:], share)) for share in SHARES])
        print(name, rows[name], flush=True)
    both = [(a, b) for r in rows.values() for a, b in zip(r["measurements"]["foreseen"], r["measurements"]["calibration_errors_alone"], strict=True)]
    medians = [float(np.median([99 if value is None else value for value in side])) for side in zip(*both, strict=True)]
    write_result(
        "foresight", {"threads": asked.threads, "median_measurements": dict(zip(("foreseen", "alone"), medians, strict=True)), "networks": rows}, asked.to
    )


if __name__ == "__main__":
    main()
