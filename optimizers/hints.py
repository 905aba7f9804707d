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


@dataclass(frozen=True, slots=True)
class Hints:
    """`traits` `(T, S, K)`, logs less their medians, 0 for the teacher and padding; `kinds` `(S, K)`: equal numbers for blocks of a kind."""

    traits: Floats
    kinds: Ints

    @classmethod
    def of(cls, problem: Problem) -> "Hints":
        """The hints that the problem's costs and names give."""
        k = np.arange(max(problem.space.sizes))
        present = (k[None] > 0) & (k[None] < np.array(problem.space.sizes)[:, None])
        found = [*_of_stages(problem), _savings(problem)]
        traits = [np.where(present, trait - np.median(trait[present]), 0.0) for trait in found if present.any()]
        return cls(np.array(traits).reshape(-1, *present.shape), _kinds(problem))


def _of_stages(problem: Problem) -> list[Floats]:
    """Log size of the teacher's block, and log of its multiply-adds a parameter, as far as both are known."""
    costs, shape = problem.costs.by_choice, (len(problem.space.sizes), max(problem.space.sizes))
    logs = [np.log(np.maximum(costs[name][:, :1], 1.0)) for name in ("params", "macs") if name in costs]
    found = logs[:1] + ([logs[1] - logs[0]] if len(logs) == 2 else [])
    return [np.broadcast_to(trait, shape) for trait in found]


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
