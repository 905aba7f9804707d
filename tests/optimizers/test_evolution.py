"""Regularised evolution."""

import pytest

from nas.optimizers.contract import additive_divergence, drive, make_problem
from nas.optimizers.evolution import RegularisedEvolution


@pytest.mark.parametrize("seed", range(4))
def test_a_child_is_one_swap_from_one_of_the_youngest(seed: int) -> None:
    problem = make_problem((4, 4, 4))
    trials = drive(RegularisedEvolution(problem, seed, population=4), problem, additive_divergence, 20)
    for number in range(4, 20):
        youngest = [t.candidate for t in trials[number - 4 : number]]
        assert any(sum(a != b for a, b in zip(trials[number].candidate, parent, strict=True)) == 1 for parent in youngest)
