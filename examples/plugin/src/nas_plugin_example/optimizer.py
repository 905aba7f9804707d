"""An optimizer: the cheapest candidate whose summed calibration errors are the least."""

from typing import final

from nas.optimizers.pool import Turn, TurnTaking, neighbours
from nas.space import Candidate


@final
class CheapestFirst(TurnTaking):
    """Proposes the cheapest promising neighbour of the incumbent, of the teacher at first."""

    def _suggest(self, turn: Turn) -> Candidate | None:
        near = turn.promising(neighbours(self.problem, turn.incumbent or self.problem.space.teacher))
        return min(near, key=lambda candidate: float(self.problem.cost([candidate])[0]), default=None)
