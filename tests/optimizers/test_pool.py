"""Draws of new candidates, and the log as one eps sees it."""

import math

import numpy as np
import pytest

from nas.optimizers.contract import additive_divergence, make_problem, trial
from nas.optimizers.pool import CandidatePool, Turn, neighbours
from nas.optimizers.random_search import RandomSearch
from nas.problem import Problem
from nas.space import Candidate
from nas.trial import Trial


def _log(problem: Problem, candidates: list[Candidate]) -> list[Trial]:
    return [trial(i, candidate, problem, additive_divergence(candidate)) for i, candidate in enumerate(candidates)]


def test_draws_from_a_listed_space_are_uniform() -> None:
    pool = CandidatePool(make_problem((2, 3)))
    rng = np.random.default_rng(0)
    counts = dict.fromkeys(pool.listed or (), 0)
    for _ in range(3000):
        counts[pool.draw({(0, 0)}, rng)[0]] += 1
    assert counts.pop((0, 0)) == 0
    assert all(abs(count - 600) < 4 * math.sqrt(600) for count in counts.values())


def test_draws_from_a_huge_space_are_distinct_allowed_and_spread() -> None:
    problem = make_problem((4,) * 20, macs_at_most=0.6)
    drawn = CandidatePool(problem).draw(set(), np.random.default_rng(0), 200)
    assert len(set(drawn)) == 200
    assert problem.allowed(drawn).all()
    assert (np.asarray(drawn).std(axis=0) > 0.5).all()


def test_draws_find_candidates_under_a_bound_that_chance_never_meets() -> None:
    problem = make_problem((4,) * 20, macs_at_most=0.33)
    drawn = CandidatePool(problem).draw(set(), np.random.default_rng(0), 3)
    assert len(drawn) == 3
    assert problem.allowed(drawn).all()


def test_the_teacher_is_known_and_never_proposed() -> None:
    problem = make_problem((2, 2))
    assert sorted(RandomSearch(problem).propose([], n=9)) == [(0, 1), (1, 0), (1, 1)]
    turn = Turn.of(problem, 0, [], [])
    assert turn.divergences == {(0, 0): 0.0}
    assert turn.incumbent == (0, 0)


def test_eps_take_turns() -> None:
    problem = make_problem((3, 3), eps=(0.1, 0.2, 0.3))
    log = _log(problem, [(0, 1), (1, 0), (1, 1), (2, 0)])
    assert [Turn.of(problem, 0, log[:count], []).eps for count in range(5)] == [0.1, 0.2, 0.3, 0.1, 0.2]
    assert Turn.of(problem, 0, log[:2], [(2, 2)]).eps == 0.1


def test_the_incumbent_is_the_cheapest_feasible_allowed_candidate() -> None:
    problem = make_problem((3, 3), macs_at_most=0.8)
    log = _log(problem, [(0, 1), (1, 1), (1, 0), (2, 2)])
    feasible = [t.candidate for t in log if (t.divergence or 0) <= 0.5 and problem.allowed([t.candidate])[0]]
    assert Turn.of(problem, 0, log, []).incumbent == min(feasible, key=lambda c: problem.costs.of(c)["params"])


def test_failed_candidates_count_as_infinitely_divergent() -> None:
    problem = make_problem((2, 2))
    turn = Turn.of(problem, 0, [trial(0, (1, 0), problem, None)], [])
    assert turn.divergences[(1, 0)] == math.inf
    assert (1, 0) in turn.taken


def test_neighbours_differ_in_one_stage() -> None:
    problem = make_problem((2, 3, 1))
    assert neighbours(problem, (0, 1, 0)) == [(1, 1, 0), (0, 0, 0), (0, 2, 0)]


@pytest.mark.parametrize("seed", range(3))
def test_seeds_give_different_proposals(seed: int) -> None:
    problem = make_problem((4,) * 10)
    assert RandomSearch(problem, seed).propose([]) != RandomSearch(problem, seed + 1).propose([])
