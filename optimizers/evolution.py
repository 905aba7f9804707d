"""Regularised evolution: tournaments among the youngest candidates, one mutation a child (Real et al. 2019 [RegEvo])."""

from typing import final

from nas.optimizers.pool import Turn, TurnTaking, neighbours
from nas.problem import Problem
from nas.space import Candidate


@final
class RegularisedEvolution(TurnTaking):
    """Mutates the winner of a tournament; candidates die of age, the constraint is handled by dominance.

    A feasible candidate beats an infeasible one; among feasible ones the cheaper wins, among infeasible ones the less divergent.

    Args:
        population: how many of the youngest measured candidates live; as many random ones come first.
        tournament: how many of them compete to be the parent.
    """

    def __init__(self, problem: Problem, seed: int = 0, *, population: int = 16, tournament: int = 4) -> None:
        super().__init__(problem, seed)
        self._population = population
        self._tournament = tournament

    def _suggest(self, turn: Turn) -> Candidate | None:
        if len(turn.log) < self._population:
            return next(iter(self.pool.draw(turn.taken, turn.rng)), None)
        alive = [trial.candidate for trial in turn.log[-self._population :]]
        for _ in range(8):
            contestants = turn.rng.choice(len(alive), size=min(self._tournament, len(alive)), replace=False)
            parent = min((alive[i] for i in contestants), key=lambda candidate: self._rank(turn, candidate))
            children = turn.open(neighbours(self.problem, parent))
            if children:
                return children[turn.rng.integers(len(children))]
        return None

    def _rank(self, turn: Turn, candidate: Candidate) -> tuple[bool, float]:
        divergence = turn.divergences[candidate]
        feasible = divergence <= turn.eps and bool(self.problem.allowed([candidate])[0])
        return (not feasible, float(self.problem.cost([candidate])[0]) if feasible else divergence)
