"""What there is to choose from: whole spaces up to some size, large neighbourhoods above, rules and known candidates taken out."""

from collections.abc import Collection

import numpy as np

from nas.optimizers.acquisition import Goal, Pass
from nas.optimizers.enumeration import Ints, Region, kept_choices
from nas.optimizers.neighbourhoods import Neighbourhoods
from nas.optimizers.stopping import count_cheaper
from nas.problem import Floats, Problem
from nas.space import Candidate

GROWTH = 16
MOST_LISTED = 2_000_000


class Domain:
    """The candidates of a problem whose choices are not dominated; depends on the problem alone."""

    def __init__(self, problem: Problem, *, keep_dominated: bool, trust_errors: bool, enumerable: int) -> None:
        self.problem = problem
        self.costs: Floats = problem.costs.by_choice[problem.objective]
        self.kept = kept_choices(problem, keep_dominated, trust_errors)
        whole = float(np.prod([float(len(choices)) for choices in self.kept])) <= enumerable
        self.region = Region(self.kept, self.costs, problem.space.teacher) if whole else None

    def top(self, goal: Goal, size: int, seen: Collection[Candidate], seed: int) -> Ints:
        """About the `size` best candidates that are allowed and not seen, `(n, S)`; empty when there is none.

        Rules are arbitrary functions, so they are asked about the best candidates only, and about more while all of those are forbidden.
        """
        wanted = size + len(seen)
        while True:
            x = self._best(goal, wanted, seen, seed)
            x = x[[tuple(row) not in seen for row in x.tolist()]] if len(x) else x
            x = x[self.problem.allowed(x)] if len(x) else x
            most = MOST_LISTED if self.region is None else min(self.region.size, MOST_LISTED)
            if len(x) or wanted >= most or not self.problem.space.rules:
                return x[:size]
            wanted = min(wanted * GROWTH, most)

    def _best(self, goal: Goal, wanted: int, seen: Collection[Candidate], seed: int) -> Ints:
        if self.region is not None:
            return Pass(self.region, goal, wanted).run()
        return Neighbourhoods(self.kept, self.costs).top(goal, wanted, sorted(seen), seed)

    def count_cheaper(self, best: float, seen: Collection[Candidate]) -> float:
        """Number of unseen combinations that cost less than `best` (fixed part left out); bounds and rules not applied."""
        known = sum(float(self.costs[np.arange(len(c)), list(c)].sum()) < best for c in seen)
        if self.region is not None:
            return float(np.searchsorted(self.region.right_cost, best - self.region.left_cost).sum()) - known
        return max(count_cheaper(self.kept, self.costs, best) - known, 0.0)
