"""Uniform random search."""

from collections.abc import Sequence
from typing import final

import numpy as np

from nas.optimizers.pool import CandidatePool, told
from nas.problem import Problem
from nas.space import Candidate
from nas.trial import Trial


@final
class RandomSearch:
    """Proposes uniformly among the allowed candidates that are neither told nor pending."""

    def __init__(self, problem: Problem, seed: int = 0) -> None:
        self._problem = problem
        self._pool = CandidatePool(problem)
        self._seed = seed

    def propose(self, trials: Sequence[Trial], pending: Sequence[Candidate] = (), n: int = 1) -> list[Candidate]:
        """At most `n` new candidates; empty once every allowed candidate is told or pending."""
        rng = np.random.default_rng((self._seed, len(trials) + len(pending)))
        return self._pool.draw(told(self._problem, trials, pending), rng, n)
