"""What is known of surrogate blocks before any trial, besides calibration errors, that their losses may follow.

Stages whose blocks are cheap in parameters or used at a high resolution (many multiply-adds a parameter) tend to be the sensitive ones, blocks that save more
tend to lose more, and blocks of one kind (one name) in several stages may have something in common. How much of it holds is learned from the trials.

Symbols: `S` stages, `K` choices, `T` traits.
"""

from dataclasses import dataclass

import numpy as np

from nas.optimizers.enumeration import Ints
from nas.problem import Floats, Problem

LEAST_SAVING = 0.02
POWERS = {"size": -0.4}
"""Of the traits in the losses before any trial; 0 for the others."""
DOUBTED = 0.3
"""Weight of what a block saves where calibration errors say how bad it is."""


@dataclass(frozen=True, slots=True)
class Hints:
    """`traits` `(T, S, K)`, logs less their medians, 0 for the teacher and padding; `kinds` `(S, K)`: equal numbers for blocks of a kind.

    `expected` `(S, K)`: what the traits add to log losses before any trial.
    """

    traits: Floats
    kinds: Ints
    expected: Floats

    @classmethod
    def of(cls, problem: Problem) -> "Hints":
        """The hints that the problem's costs and names give."""
        k = np.arange(max(problem.space.sizes))
        present = (k[None] > 0) & (k[None] < np.array(problem.space.sizes)[:, None])
        traits = {
            name: np.where(present, trait - np.median(trait[present]), 0.0)
            for name, trait in (_of_stages(problem) | {"saving": _savings(problem)}).items()
            if present.any()
        }
        expected = sum((POWERS.get(name, 0.0) * trait for name, trait in traits.items()), np.zeros(present.shape))
        if problem.known_errors is not None and "saving" in traits:
            traits["saving"] = DOUBTED * traits["saving"]
        return cls(np.array(list(traits.values())).reshape(-1, *present.shape), _kinds(problem), np.asarray(expected))


def _of_stages(problem: Problem) -> dict[str, Floats]:
    """Log size of the teacher's block, and log of its multiply-adds a parameter, as far as both are known."""
    costs, shape = problem.costs.by_choice, (len(problem.space.sizes), max(problem.space.sizes))
    logs = {name: np.broadcast_to(np.log(np.maximum(costs[name][:, :1], 1.0)), shape) for name in ("params", "macs") if name in costs}
    found = {"size": logs["params"]} if "params" in logs else {}
    return found | ({"resolution": logs["macs"] - logs["params"]} if len(logs) == 2 else {})


def _savings(problem: Problem) -> Floats:
    """Log share of the teacher's block's cost that each block saves."""
    cost = problem.costs.by_choice[problem.objective]
    share = 1 - np.nan_to_num(cost) / np.maximum(cost[:, :1], 1e-300)
    return np.asarray(np.log(np.clip(share, LEAST_SAVING, 1.0)))


def _kinds(problem: Problem) -> Ints:
    """Numbers of the choices' names; 0 in the padding."""
    numbers: dict[str, int] = {}
    kinds = np.zeros((len(problem.space.sizes), max(problem.space.sizes)), dtype=np.int64)
    for s, stage in enumerate(problem.space.stages):
        kinds[s, : len(stage.choices)] = [numbers.setdefault(choice.name, len(numbers)) for choice in stage.choices]
    return kinds
