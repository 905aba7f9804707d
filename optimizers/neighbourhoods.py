"""Search in spaces too large to enumerate: large neighbourhoods, each enumerated in full.

From a few starting points (the cheapest feasible ones known and a Lagrangian path of separable problems) all stages but a group are held, the group's
combinations are searched like a whole space, the best becomes the next base, and the groups change. A group holds several stages, so that exchanges
between stages that single swaps cannot find are found at once.
"""

from collections.abc import Sequence

import numpy as np

from nas.optimizers.acquisition import Goal, Pass, score
from nas.optimizers.enumeration import Ints, Region
from nas.problem import Floats
from nas.space import Candidate

GROUP = 50_000
"""Most combinations of a group of stages."""
STARTS = 3
SWEEPS = 2
PER_GROUP = 96
MULTIPLIERS = np.logspace(-3, 3, 48)


class Neighbourhoods:
    """The search itself; `kept` choices and the objective by choice `(S, K)` as in `Region`."""

    def __init__(self, kept: Sequence[Ints], costs: Floats) -> None:
        self.kept = kept
        self.costs = costs

    def top(self, goal: Goal, size: int, known: Sequence[Candidate], seed: int) -> Ints:
        """About the `size` best candidates found that save anything, best first by exact score, `(n, S)`; `known` ones serve as starting points."""
        rng = np.random.default_rng(seed)
        pool = self._ranked(goal, np.concatenate([self._path(goal), np.array(known, dtype=np.int64).reshape(-1, len(self.kept))]))
        for start in pool[:STARTS]:
            base = start
            for _ in range(SWEEPS):
                for group in self._groups(rng):
                    region = Region(self.kept, self.costs, tuple(base.tolist()), group)
                    pool = np.concatenate([self._ranked(goal, np.concatenate([Pass(region, goal, PER_GROUP).run(), base[None]])), pool])
                    base = pool[0]
        pool = self._ranked(goal, pool)
        return pool[np.isfinite(score(goal, pool, self._cost(pool)))][:size] if len(pool) else pool

    def _ranked(self, goal: Goal, x: Ints) -> Ints:
        """The distinct candidates by falling score, ties in lexicographic order; the teacher left out."""
        x = np.unique(x, axis=0)
        x = x[x.any(axis=1)]
        return x[np.argsort(-score(goal, x, self._cost(x)), kind="stable")] if len(x) else x

    def _cost(self, x: Ints) -> Floats:
        return np.asarray(self.costs[np.arange(x.shape[1]), x].sum(1))

    def _path(self, goal: Goal) -> Ints:
        """Minimisers of cost + multiplier x (sum of single-swap losses), one a multiplier, under the heaviest model, `(48, S)`."""
        belief, reach = goal.beliefs[0], max(goal.best)
        losses = []
        for s, choices in enumerate(self.kept):
            singles = np.zeros((len(choices), len(self.kept)), dtype=np.int64)
            singles[:, s] = choices
            loss = np.zeros(len(choices))
            swapped = choices > 0
            loss[swapped] = np.exp(np.minimum(belief.mean(singles[swapped]) - belief.threshold(max(goal.eps)), 50.0))
            losses.append(loss)
        path = [
            [int(c[np.argmin(self.costs[s, c] / reach + multiplier * loss)]) for s, (c, loss) in enumerate(zip(self.kept, losses, strict=True))]
            for multiplier in MULTIPLIERS
        ]
        return np.array(path, dtype=np.int64)

    def _groups(self, rng: np.random.Generator) -> list[list[int]]:
        """The stages in random groups of at most `GROUP` combinations each, at least one stage a group."""
        groups: list[list[int]] = [[]]
        size = 1
        for s in rng.permutation(len(self.kept)).tolist():
            if groups[-1] and size * len(self.kept[s]) > GROUP:
                groups.append([])
                size = 1
            groups[-1].append(s)
            size *= len(self.kept[s])
        return groups
