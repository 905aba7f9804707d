"""The threshold's bisection."""

from nas.optimizers.contract import additive_divergence, drive, make_problem
from nas.optimizers.threshold import ThresholdSearch


def test_first_it_measures_swaps_then_a_composed_candidate() -> None:
    problem = make_problem((4, 4, 4), eps=(0.7,))
    swaps = [sum(k > 0 for k in t.candidate) for t in drive(ThresholdSearch(problem), problem, additive_divergence, 12)]
    first_composed = next(i for i, count in enumerate(swaps) if count > 1)
    assert set(swaps[:first_composed]) == {1}
    assert first_composed <= 6  # two bisection steps a stage


def test_each_stage_takes_its_cheapest_choice_below_the_threshold() -> None:
    problem = make_problem((4, 4, 4), eps=(0.7,))
    found = [t for t in drive(ThresholdSearch(problem), problem, additive_divergence, 30) if (t.divergence or 0) <= 0.7]
    best = min(found, key=lambda t: t.costs["params"])
    alone = [additive_divergence(tuple(k if s == stage else 0 for s in range(3))) for stage, k in enumerate(best.candidate)]
    assert max(alone) <= 0.7
    assert best.costs["params"] < 0.75 * problem.costs.of(problem.space.teacher)["params"]
