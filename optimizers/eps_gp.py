"""The default optimizer: a Gaussian process that knows how divergences compound, and the whole space as its acquisition's domain."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import final

import numpy as np
import torch
from botorch.models import SingleTaskGP
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # a dependency of botorch

from nas.errors import InputError
from nas.optimizers.acquisition import Goal, Limit, feasibility
from nas.optimizers.batches import select_batch
from nas.optimizers.beliefs import Record
from nas.optimizers.botorch_model import as_botorch
from nas.optimizers.domain import Domain
from nas.optimizers.enumeration import Ints, PairTable
from nas.optimizers.forecast import cheapest_cost, quantiles
from nas.optimizers.selection import Weighted, believe
from nas.optimizers.stopping import Statement, for_one_eps, probability_of_any
from nas.problem import Floats, Problem
from nas.space import Candidate
from nas.trial import Trial

SHORTLIST = 256
FOR_STATEMENT = 2048
ENUMERABLE = 20_000_000
STALL = 24
STALL_STRIDE = 6
"""After `STALL` proposals without improvement one in `STALL_STRIDE` measures a block alone: late and rarely, since mostly nothing is hoped from it."""
LEAST_TRIALS = 5
"""Measurements before which the models are not trusted to stop a search."""


@contextmanager
def one_thread() -> Iterator[None]:
    """Runs torch and BLAS on one thread: results do not depend on the machine's cores, and thousands of small products gain nothing from more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True, slots=True)
class Search:
    """One state of a search: where to look, what for, what is known or under way already, and the seed of random choices."""

    domain: Domain
    goal: Goal
    seen: frozenset[Candidate]
    seed: int

    def top(self, goal: Goal, size: int) -> Ints:
        """The best unseen allowed candidates, `(n, S)`."""
        return self.domain.top(goal, size, self.seen, self.seed)


@final
class EpsGP:
    """Proposes the candidate with the largest expected saving among all that are cheaper than the incumbents.

    The teacher counts as measured: cost known, divergence 0. Nothing that costs as much as the incumbents is proposed, except a single swap when the
    search stalls.

    Args:
        problem: what to minimise, the bounds, and what is known of each block.
        seed: of the few random choices (groups of stages in spaces above `enumerable`, draws behind the stopping statement).
        delta: stop once the probability that a cheaper candidate is feasible is below this at every eps; 0 goes on until nothing cheaper is left.
        keep_dominated: search from the start choices too that another choice of their stage beats in every known respect; by default they come last.
        enumerable: spaces of more candidates are searched by large neighbourhoods instead of as a whole.

    Raises:
        InputError: `delta` is no probability.
    """

    def __init__(self, problem: Problem, seed: int = 0, *, delta: float = 0.01, keep_dominated: bool = False, enumerable: int = ENUMERABLE) -> None:
        if not 0 <= delta < 1:
            raise InputError(f"eps_gp: delta must be at least 0 and below 1, got {delta}")
        self.problem = problem
        self.seed = seed
        self.delta = delta
        self.keep_dominated = keep_dominated
        self.enumerable = enumerable
        self._fixed = float(problem.costs.fixed.get(problem.objective, 0.0))
        self._domains: dict[tuple[bool, bool], Domain] = {}
        self._fitted: tuple[tuple[object, ...], Weighted] | None = None

    def propose(self, trials: Sequence[Trial], pending: Sequence[Candidate] = (), n: int = 1) -> list[Candidate]:
        """At most `n` candidates neither told nor pending, most promising first; empty once nothing cheaper is worth a measurement."""
        with one_thread():
            return self._propose(trials, [tuple(candidate) for candidate in pending], n)

    def _propose(self, trials: Sequence[Trial], under_way: Sequence[Candidate], n: int) -> list[Candidate]:
        search, x = self._open(trials, under_way, n)
        if not len(x):
            return []
        untried = self._untried_block(trials, under_way, search)
        given = [candidate for candidate in (*under_way, untried) if candidate is not None and any(candidate)]
        picks = select_batch(search.goal, x, self._cost(x), given, self._cost(np.array(given, dtype=np.int64).reshape(-1, x.shape[1])), n)
        rows = [tuple(row) for row in picks.tolist()]
        return (rows if untried is None else [untried, *(row for row in rows if row != untried)])[:n]

    def _open(self, trials: Sequence[Trial], under_way: Sequence[Candidate], n: int) -> tuple[Search, Ints]:
        """The search and its best candidates; among dominated choices too once the others have nothing left, none if the search is over."""
        search = self._search(trials, under_way)
        x = search.top(search.goal, SHORTLIST + n)
        if len(x) and not self._settled(search, x, trials):
            return search, x
        everything = replace(search, domain=self._domain(False, True))
        x = everything.top(search.goal, SHORTLIST + n)
        over = not len(x) or self._settled(everything, x, trials)
        return everything, x[:0] if over else x

    def statement(self, trials: Sequence[Trial]) -> dict[float, Statement]:
        """For each eps, how likely it is that an unmeasured cheaper candidate is feasible, dominated choices included."""
        with one_thread():
            search = replace(self._search(trials, ()), domain=self._domain(False, True))
            return {eps: self._statement_at(search, e) for e, eps in enumerate(self.problem.eps)}

    def pruned(self, trials: Sequence[Trial]) -> dict[str, list[str]]:
        """The dominated choices that the search leaves for last, by stage."""
        with one_thread():
            kept = self._search(trials, ()).domain.kept
        stages = self.problem.space.stages
        out = {stage.name: [c.name for k, c in enumerate(stage.choices) if k not in alive] for stage, alive in zip(stages, kept, strict=True)}
        return {stage: choices for stage, choices in out.items() if choices}

    def predict(self, trials: Sequence[Trial], candidates: Sequence[Candidate]) -> Floats:
        """5 %, 50 % and 95 % quantiles of the divergence of candidates not yet measured, `(n, 3)`; 0 for the teacher."""
        x = np.array(candidates, dtype=np.int64).reshape(len(candidates), len(self.problem.space.stages))
        out, replaces = np.zeros((len(x), 3)), x.any(axis=1)
        if replaces.any():
            with one_thread():
                out[replaces] = quantiles(self._goal(trials, self._believe(trials)), x[replaces], Record.of(self.problem, trials).scale)
        return out

    def cost_at(self, trials: Sequence[Trial], eps: float) -> Floats:
        """Draws of the cost of the cheapest candidate that is feasible at any eps, dominated choices included, `(D,)`; infinite where none is."""
        with one_thread():
            search = replace(self._search(trials, ()), domain=self._domain(False, True))
            best = self._best(trials, eps)[-1]
            goal = replace(search.goal, eps=(eps,), best=(best,))
            x = search.top(goal, FOR_STATEMENT)
            return self._fixed + cheapest_cost(goal, x, self._cost, math.inf if self._open_above(best) else best, self.seed)

    def model(self, trials: Sequence[Trial]) -> SingleTaskGP:
        """The heaviest fitted model as an ordinary botorch model over choice indices, on its own scale of the divergence (log L, mostly)."""
        return as_botorch(self._believe(trials).beliefs[0])

    def _search(self, trials: Sequence[Trial], pending: Sequence[Candidate]) -> Search:
        believed = self._believe(trials)
        seen = {tuple(t.candidate) for t in trials} | {tuple(candidate) for candidate in pending} | {self.problem.space.teacher}
        return Search(self._domain(believed.trusts_errors, self.keep_dominated), self._goal(trials, believed), frozenset(seen), self.seed + len(trials))

    def _believe(self, trials: Sequence[Trial]) -> Weighted:
        """The fitted models; kept for the trials asked about last, since proposing and predicting ask about the same ones."""
        key = tuple((trial.candidate, trial.divergence, trial.stderr) for trial in trials)
        if self._fitted is None or self._fitted[0] != key:
            self._fitted = (key, believe(self.problem, Record.of(self.problem, trials)))
        return self._fitted[1]

    def _goal(self, trials: Sequence[Trial], believed: Weighted) -> Goal:
        costs, eps = self.problem.costs, self.problem.eps
        limits = [Limit(PairTable(costs.by_choice[b.metric]), b.limit - float(costs.fixed.get(b.metric, 0.0))) for b in self.problem.bounds]
        rounding = 1e-12 * costs.reach(self.problem.objective)[1]  # sums in another order must not look cheaper
        return Goal(believed.beliefs, believed.weights, eps, tuple(self._best(trials, e)[-1] - rounding for e in eps), tuple(limits))

    def _best(self, trials: Sequence[Trial], eps: float) -> list[float]:
        """Cost to beat before each trial and after the last `(n + 1,)`, fixed part left out.

        It starts at the teacher's cost, or above all costs where the bounds exclude the teacher.
        """
        teacher = np.array([self.problem.space.teacher])
        low, high = self.problem.costs.reach(self.problem.objective)
        start = float(self._cost(teacher)[0]) if self.problem.allowed(teacher)[0] else high - self._fixed + 0.01 * (high - low) + 1e-9
        best = [start]
        for trial in trials:
            feasible = trial.divergence is not None and trial.divergence <= eps
            row = np.array([trial.candidate])
            won = feasible and bool(self.problem.allowed(row)[0])
            best.append(min(best[-1], float(self._cost(row)[0])) if won else best[-1])
        return best

    def _open_above(self, best: float) -> bool:
        """Whether a cost to beat is above all costs: nothing is known to be feasible."""
        return best + self._fixed > self.problem.costs.reach(self.problem.objective)[1]

    def _cost(self, x: Ints) -> Floats:
        return self.problem.cost(x) - self._fixed

    def _domain(self, trust_errors: bool, keep_dominated: bool) -> Domain:
        key = (trust_errors and not keep_dominated, keep_dominated)
        if key not in self._domains:
            self._domains[key] = Domain(self.problem, keep_dominated=keep_dominated, trust_errors=trust_errors, enumerable=self.enumerable)
        return self._domains[key]

    def _settled(self, search: Search, x: Ints, trials: Sequence[Trial]) -> bool:
        """Whether nothing cheaper is likely to be feasible at any eps; the shortlist alone mostly answers no."""
        n_measured = sum(trial.divergence is not None for trial in trials)
        if self.delta == 0 or n_measured < LEAST_TRIALS:
            return False
        cheaper = self._cost(x) < np.array(search.goal.best)[:, None]
        if np.where(cheaper, feasibility(search.goal, x), -np.inf).max() >= math.log(self.delta):
            return False
        return all(self._statement_at(search, e).p_better < self.delta for e in range(len(self.problem.eps)))

    def _statement_at(self, search: Search, e: int) -> Statement:
        goal = for_one_eps(search.goal, e)
        x = search.top(goal, FOR_STATEMENT)
        p_better = probability_of_any(goal, x, self.seed)
        n_cheaper = search.domain.count_cheaper(goal, search.seen)
        return Statement(self.problem.eps[e], p_better, n_cheaper, not search.domain.counts_exactly, self._open_above(goal.best[0]))

    def _untried_block(self, trials: Sequence[Trial], pending: Sequence[Candidate], search: Search) -> Candidate | None:
        """When the search stalls: the block in no candidate so far that saves most, alone in an otherwise unchanged teacher."""
        bests = [self._best(trials, eps) for eps in self.problem.eps]
        last = max(max((i for i in range(len(trials)) if best[i + 1] < best[i]), default=-1) for best in bests)
        stalled = len(trials) - 1 - last + len(pending)
        if stalled < STALL or stalled % STALL_STRIDE:
            return None
        known = [*(trial.candidate for trial in trials), *pending]
        tried = {(s, k) for candidate in known for s, k in enumerate(candidate)}
        costs = search.domain.costs
        blocks = [(s, int(k)) for s, choices in enumerate(search.domain.kept) for k in choices if k and (s, int(k)) not in tried]
        blocks.sort(key=lambda block: costs[block] - costs[block[0], 0])
        for s, k in blocks:
            single = tuple(k if t == s else 0 for t in range(len(costs)))
            if costs[s, k] < costs[s, 0] and self.problem.allowed(np.array([single]))[0]:
                return single
        return None
