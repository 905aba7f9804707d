"""Local search: hill climbing from the cheapest feasible candidate."""

from typing import final

from nas.optimizers.pool import Turn, TurnTaking, neighbours
from nas.space import Candidate


@final
class LocalSearch(TurnTaking):
    """Proposes a random cheaper neighbour of the incumbent, one swap away while there are any, then two.

    While nothing is feasible it moves from the least divergent candidate within the bounds instead.
    """

    def _suggest(self, turn: Turn) -> Candidate | None:
        centre = turn.incumbent or self._least_divergent(turn)
        if centre is None:
            return None
        near = neighbours(self.problem, centre)
        open_ = turn.promising(near)
        for index in turn.rng.permutation(len(near)) if not open_ else ():
            open_ = turn.promising(neighbours(self.problem, near[index]))
            if open_:
                break
        return open_[turn.rng.integers(len(open_))] if open_ else None

    def _least_divergent(self, turn: Turn) -> Candidate | None:
        measured = list(turn.divergences)
        allowed = [candidate for candidate, keep in zip(measured, self.problem.allowed(measured), strict=True) if keep]
        return min(allowed, key=lambda candidate: turn.divergences[candidate], default=None)
