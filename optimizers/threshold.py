"""Threshold search: one sensitivity threshold for all stages, found by bisection (as FastNAS in NVIDIA's Model Optimizer does).

Given a threshold, each stage takes its cheapest choice whose divergence, measured alone, stays below it; that choice is found by bisection
over the stage's choices, which supposes that a cheaper one is never better. The threshold itself is bisected until the composed candidate
is just feasible.
"""

import math
from collections.abc import Iterator
from typing import final

from nas.optimizers.pool import Turn, TurnTaking
from nas.problem import Problem
from nas.space import Candidate


@final
class ThresholdSearch(TurnTaking):
    """Replays the bisection on what is measured and proposes what it asks for next; random cheaper candidates once it has ended."""

    def __init__(self, problem: Problem, seed: int = 0) -> None:
        super().__init__(problem, seed)
        table = problem.costs.by_choice[problem.objective]
        self._ladders = [sorted(range(1, size), key=lambda k, s=s: table[s, k]) for s, size in enumerate(problem.space.sizes)]  # type: ignore[misc]

    def _suggest(self, turn: Turn) -> Candidate | None:
        return next((candidate for candidate in self._wanted(turn) if turn.open([candidate])), None)

    def _wanted(self, turn: Turn, steps: int = 24) -> Iterator[Candidate]:
        """What the bisection needs and has not got; ends where it converged or has to wait for pending measurements."""
        low, high = 0.0, math.inf
        threshold = turn.eps / max(1, sum(bool(ladder) for ladder in self._ladders))
        for _ in range(steps):
            composed, missing = self._composed(threshold, turn)
            if missing:
                yield from missing
                return
            if composed in turn.divergences and turn.divergences[composed] > turn.eps:
                high = threshold
            elif composed in turn.divergences or not self._worth_measuring(composed, turn):
                low = threshold
            else:
                yield composed
                return
            threshold = 2 * low if math.isinf(high) else high / 2 if low == 0 else math.sqrt(low * high)

    def _worth_measuring(self, composed: Candidate, turn: Turn) -> bool:
        return composed in turn.pending or bool(turn.promising([composed]))

    def _composed(self, threshold: float, turn: Turn) -> tuple[Candidate, list[Candidate]]:
        """Every stage's cheapest choice below the threshold, and the swaps that must be measured to know it."""
        chosen, missing = [], []
        for s in range(len(self._ladders)):
            found = self._cheapest_below(s, threshold, turn)
            if isinstance(found, int):
                chosen.append(found)
            else:
                missing.append(found)
        return tuple(chosen), missing

    def _cheapest_below(self, s: int, threshold: float, turn: Turn) -> int | Candidate:
        """Bisection over the choices of stage `s` from cheap to dear: a choice, or the swap whose divergence it needs."""
        ladder, teacher = self._ladders[s], self.problem.space.teacher
        first, last = 0, len(ladder)
        while first < last:
            middle = (first + last) // 2
            swap = (*teacher[:s], ladder[middle], *teacher[s + 1 :])
            divergence = turn.divergences.get(swap)
            if divergence is None and self.problem.allowed([swap])[0]:
                return swap
            if divergence is not None and divergence <= threshold:
                last = middle
            else:
                first = middle + 1
        return ladder[first] if first < len(ladder) else 0
