"""The additive model's exact minimum, by listing and by programming, and its repair."""

import numpy as np
import pytest

from nas.optimizers import additive
from nas.optimizers.additive import AdditiveSearch, repaired
from nas.optimizers.contract import additive_divergence, drive, make_problem, trial
from nas.optimizers.pool import Turn
from nas.space import Candidate


def test_single_swaps_come_first() -> None:
    problem = make_problem((3, 1, 2))
    proposed = [t.candidate for t in drive(AdditiveSearch(problem), problem, additive_divergence, 3)]
    assert proposed == [(1, 0, 0), (2, 0, 0), (0, 0, 1)]


@pytest.mark.parametrize("eps", [0.15, 0.45, 0.92])
def test_the_first_candidate_after_the_swaps_is_optimal_where_the_model_is_true(eps: float) -> None:
    problem = make_problem((3, 3, 2, 3), eps=(eps,))
    trials = drive(AdditiveSearch(problem), problem, additive_divergence, 8)
    everything = [tuple(row) for row in problem.space.enumerate().tolist()]
    best = min(problem.costs.of(c)["params"] for c in everything if additive_divergence(c) <= eps)
    feasible = [t.costs["params"] for t in trials if (t.divergence or 0) <= eps]
    assert min([*feasible, problem.costs.of(problem.space.teacher)["params"]]) == pytest.approx(best)


@pytest.mark.parametrize("seed", range(4))
def test_programming_finds_what_listing_finds(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make_problem((3, 4, 2, 3), eps=(0.6,), macs_at_most=0.9)
    rng = np.random.default_rng(seed)

    def measure(candidate: Candidate) -> float:
        return additive_divergence(candidate) * float(1 + 0.2 * np.random.default_rng([seed, *candidate]).random())

    trials = drive(AdditiveSearch(problem, seed), problem, measure, int(rng.integers(9, 13)))
    listed = AdditiveSearch(problem, seed).propose(trials)
    monkeypatch.setattr(additive, "ENUMERABLE", 0)
    programmed = AdditiveSearch(problem, seed).propose(trials)
    assert problem.cost(programmed) == pytest.approx(problem.cost(listed))


def test_the_repair_scales_by_what_compounding_added() -> None:
    problem = make_problem((2, 2, 2))
    losses = np.array([[0.0, 0.1], [0.0, 0.2], [0.0, 0.3]])
    turn = Turn.of(problem, 0, [trial(0, (1, 1, 0), problem, 0.45)], [])
    np.testing.assert_allclose(repaired(losses, turn), 1.5 * losses)


def test_the_repair_corrects_swaps_whose_divergence_alone_was_zero() -> None:
    problem = make_problem((2, 2, 2))
    turn = Turn.of(problem, 0, [trial(0, (1, 1, 0), problem, 0.6)], [])
    mended = repaired(np.zeros((3, 2)), turn)
    np.testing.assert_allclose(mended, np.array([[0.0, 0.2], [0.0, 0.2], [0.0, 0.0]]))  # 0.6 shared between 2 swaps, shrunk by 2 / (2 + 1)


def test_a_failed_swap_is_not_used() -> None:
    problem = make_problem((2, 2, 2), eps=(9.0,))
    trials = drive(AdditiveSearch(problem), problem, lambda c: None if c[1] else additive_divergence(c), 4)
    assert trials[3].candidate == (1, 0, 1)
