"""What there is to choose from: whole spaces up to some size, large neighbourhoods above, rules and known candidates taken out."""

from collections.abc import Collection

import numpy as np

from nas.optimizers.acquisition import BLOCK, Goal, Pass
from nas.optimizers.enumeration import Ints, PairTable, Region, kept_choices
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

    @property
    def counts_exactly(self) -> bool:
        """Whether `count_cheaper` leaves nothing out of account: rules are never asked, bounds only of a space that is searched as a whole."""
        return not self.problem.space.rules and (self.region is not None or not self.problem.bounds)

    def count_cheaper(self, goal: Goal, seen: Collection[Candidate]) -> float:
        """Number of unseen combinations that cost less than the goal's only `best`; where not `counts_exactly`, no more than that many are allowed."""
        x = np.array(sorted(seen), dtype=np.int64).reshape(len(seen), len(self.costs))
        known = PairTable(self.costs).at(x) < goal.best[0]
        if self.region is None:
            return max(count_cheaper(self.kept, self.costs, goal.best[0]) - float(known.sum()), 0.0)
        for limit in goal.limits:
            known &= limit.table.at(x) <= limit.limit * (1 + 1e-12)
        return float(_count_within(self.region, goal) - known.sum())


def _count_within(region: Region, goal: Goal) -> int:
    """Candidates of a region that cost less than the goal's only `best`, within its limits: block by block, as they are searched."""
    reach = np.searchsorted(region.right_cost, goal.best[0] - region.fixed_cost - region.left_cost)  # columns of each row that cost less, falling
    if not goal.limits:
        return int(reach.sum())
    limits = [(limit.table.halved(region), limit.limit * (1 + 1e-12)) for limit in goal.limits]
    start = found = 0
    while start < len(reach) and reach[start]:
        n_columns = int(reach[start])
        rows = slice(start, min(len(reach), start + max(1, BLOCK // n_columns)))
        within = np.arange(n_columns) < reach[rows, None]
        for halved, limit in limits:
            within &= halved.block(rows, n_columns) <= limit
        found += int(np.count_nonzero(within))
        start = rows.stop
    return found
