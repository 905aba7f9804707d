"""Synthetic landscapes: the formula, the knobs, and the exact optimum."""

import numpy as np
import pytest

from nas.errors import InputError
from nas.problem import Bound, Problem
from nas.progress import Quiet
from nas.spaces import landscape
from nas.spaces.landscape import MIDDLE, merged_front
from nas.spaces.synthetic import SyntheticSpace, make_synthetic
from nas.table import outer_sum


def problem_of(space: SyntheticSpace, eps: float = 0.003, **options: object) -> Problem:
    return Problem(space.space, space.costs(), (eps,), **options)  # type: ignore[arg-type]


def divergences(space: SyntheticSpace) -> np.ndarray:
    measured = space.prepare(Quiet()).evaluator.measure([tuple(row) for row in space.space.enumerate().tolist()])
    return np.array([m.divergence for m in measured])


@pytest.mark.parametrize("eps", [0.001, 0.003, 0.007])
@pytest.mark.parametrize("settings", [{}, {"noise": 0.2, "tails": 3.0}, {"interaction": -0.3}, {"offset": 0.001}])
def test_the_optimum_is_what_brute_force_finds(settings: dict[str, float], eps: float) -> None:
    space = make_synthetic(5, stages=5, choices=4, **settings)
    evaluator = space.prepare(Quiet()).evaluator
    problem = problem_of(space)
    costs = problem.cost(space.space.enumerate())
    optimum = evaluator.optimum(problem, eps)  # type: ignore[attr-defined]
    assert problem.cost([optimum])[0] == pytest.approx(costs[divergences(space) <= eps].min(), rel=1e-12)
    assert evaluator.measure([optimum])[0].divergence <= eps  # type: ignore[operator]


def test_the_optimum_of_a_grouped_space_is_what_brute_force_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landscape, "ONE_GROUP", 10)
    monkeypatch.setattr(landscape, "GROUP", 20)
    space = make_synthetic(6, stages=7, choices=3, noise=0.1)
    assert len(space.landscape.groups) == 4
    costs = problem_of(space).cost(space.space.enumerate())
    measured = divergences(space)
    for eps in (0.001, 0.002, 0.003, 0.005):
        optimum = space.landscape.optimum(space.costs().by_choice["params"], eps)
        assert optimum is not None
        assert problem_of(space).cost([optimum])[0] == pytest.approx(costs[measured <= eps].min(), rel=1e-12)


def test_bounds_are_part_of_the_optimum() -> None:
    space = make_synthetic(5, stages=5)
    evaluator = space.prepare(Quiet()).evaluator
    macs = space.costs().totals(space.space.enumerate(), "macs")
    bounded = problem_of(space, bounds=(Bound("macs", 0.7 * macs[0]),))
    rows = space.space.enumerate()[(divergences(space) <= 0.005) & (macs <= 0.7 * macs[0])]
    optimum = evaluator.optimum(bounded, 0.005)  # type: ignore[attr-defined]
    assert bounded.cost([optimum])[0] == pytest.approx(bounded.cost(rows).min())


def test_huge_spaces_have_an_optimum_but_not_under_bounds() -> None:
    space = make_synthetic(1, stages=24, choices=6)
    assert space.space.n_candidates > 1e18
    evaluator = space.prepare(Quiet()).evaluator
    optimum = evaluator.optimum(problem_of(space), 0.003)  # type: ignore[attr-defined]
    assert evaluator.measure([optimum])[0].divergence <= 0.003  # type: ignore[operator]
    with pytest.raises(InputError, match="bounds or rules"):
        evaluator.optimum(problem_of(space, bounds=(Bound("macs", 1e12),)), 0.003)  # type: ignore[attr-defined]


def test_a_merged_front_is_the_front_of_the_sums() -> None:
    rng = np.random.default_rng(0)
    groups, terms, costs = ((3, 3), (2,)), (rng.random(9), rng.random(2)), rng.random((3, 3))
    front = merged_front(groups, terms, costs)
    cost = outer_sum(costs, (3, 3, 2))
    x = np.add.outer(terms[0], terms[1]).ravel()
    undominated = [i for i in range(18) if not ((cost <= cost[i]) & (x <= x[i]) & ((cost < cost[i]) | (x < x[i]))).any()]
    assert sorted(front.cost) == pytest.approx(sorted(cost[undominated]))
    assert sorted(front.x) == pytest.approx(sorted(x[undominated]))


def test_the_teacher_has_no_divergence_and_the_middle_is_where_eps_are() -> None:
    space = make_synthetic(2, stages=6)
    rows = space.space.enumerate()
    measured, cost = divergences(space), problem_of(space).cost(rows)
    assert measured[0] == 0
    assert measured[cost <= (cost.min() + cost[0]) / 2].min() == pytest.approx(MIDDLE)


def test_without_interaction_noise_and_compounding_divergences_add_up() -> None:
    space = make_synthetic(3, stages=4, choices=3, compounding=0, interaction=0, interaction_spread=0, noise=0)
    measured = divergences(space).reshape(space.space.sizes)
    assert measured[1, 2, 0, 1] == pytest.approx(measured[1, 0, 0, 0] + measured[0, 2, 0, 0] + measured[0, 0, 0, 1])


@pytest.mark.parametrize(("interaction", "sign"), [(0.3, 1), (-0.3, -1)])
def test_the_sign_of_interactions_shows(interaction: float, sign: int) -> None:
    space = make_synthetic(3, stages=4, choices=3, compounding=0, interaction=interaction, interaction_spread=0, noise=0)
    measured = divergences(space).reshape(space.space.sizes)
    assert sign * (measured[1, 1, 1, 1] - measured[1, 0, 0, 0] - measured[0, 1, 0, 0] - measured[0, 0, 1, 0] - measured[0, 0, 0, 1]) > 0


@pytest.mark.parametrize(("informativeness", "least", "most"), [(1.0, 0.99, 1.0), (0.0, -0.5, 0.5)])
def test_informativeness_is_how_well_calibration_errors_order_choices(informativeness: float, least: float, most: float) -> None:
    correlations = []
    for seed in range(5):
        exact = make_synthetic(seed, stages=6, choices=6, noise=0.0).prepare(Quiet()).calibration_errors
        given = make_synthetic(seed, stages=6, choices=6, noise=0.0, informativeness=informativeness).prepare(Quiet()).calibration_errors
        assert exact is not None
        assert given is not None
        assert (given[:, 0] == 0).all()
        correlations.append(np.corrcoef(np.log(exact[:, 1:]).ravel(), np.log(given[:, 1:]).ravel())[0, 1])
    assert least <= float(np.mean(correlations)) <= most + 1e-9


def test_none_gives_no_calibration_errors() -> None:
    assert make_synthetic(0, informativeness=None).prepare(Quiet()).calibration_errors is None


def test_an_offset_makes_some_divergences_negative_but_not_the_teachers() -> None:
    measured = divergences(make_synthetic(0, stages=5, offset=0.002))
    assert measured[0] == 0
    assert (measured < 0).any()


def test_heavy_tails_are_heavier() -> None:
    def spread(tails: float) -> float:
        noisy, clean = (divergences(make_synthetic(0, stages=6, noise=noise, tails=tails)) for noise in (0.1, 0.0))
        xi = np.log(noisy[1:]) - np.log(clean[1:])
        return float(((xi - xi.mean()) ** 4).mean() / xi.var() ** 2)

    assert spread(3.0) > 2 * spread(float("inf"))


def test_losses_are_foreseen_as_well_as_is_asked() -> None:
    def told(foresight: float) -> float:
        """Standard deviation of the log errors."""
        space = make_synthetic(3, stages=40, choices=4, foresight=foresight)
        expected = space.prepare(Quiet()).expected_losses
        assert expected is not None
        assert not expected[:, 0].any()
        singles = [tuple(k if t == s else 0 for t in range(40)) for s in range(40) for k in (1, 2, 3)]
        return float(np.log(expected[:, 1:].ravel() / space.landscape.divergence(singles)).std())

    assert told(0.0) < 0.05  # what nobody foresees: each candidate's own deviation
    assert 0.35 < told(0.4) < 0.6


def test_foresight_changes_nothing_else_about_a_space() -> None:
    plain, foreseen = make_synthetic(4, stages=4), make_synthetic(4, stages=4, foresight=0.4)
    np.testing.assert_array_equal(divergences(plain), divergences(foreseen))
    assert plain.prepare(Quiet()).expected_losses is None
    assert plain.fingerprint() != foreseen.fingerprint()


@pytest.mark.parametrize("changed", [{"sensitivity": 2.0}, {"deviation": 0.7}, {"foresight": 0.0}])
def test_whatever_decides_a_space_is_in_its_fingerprint(changed: dict[str, float]) -> None:
    assert make_synthetic(4, stages=4, **changed).fingerprint() != make_synthetic(4, stages=4).fingerprint()  # type: ignore[arg-type]


def test_the_same_arguments_give_the_same_space() -> None:
    first, second, other = (make_synthetic(seed, stages=4) for seed in (4, "4", 5))
    np.testing.assert_array_equal(divergences(first), divergences(second))
    assert first.fingerprint() == second.fingerprint() != other.fingerprint()
    assert (divergences(first) != divergences(other)).any()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"seed": "x"}, "the seed must be an integer"),
        ({"seed": -1}, "of at least 0"),
        ({"stages": 0}, "at least 1 stage"),
        ({"choices": 0}, "1 choice"),
        ({"informativeness": 1.5}, "informativeness must be in 0..1"),
        ({"tails": 2.0}, "tails must be above 2"),
        ({"noise": -0.1}, "must not be negative"),
        ({"foresight": -0.1}, "foresight"),
        ({"sensitivity": -1.0}, "must not be negative"),
        ({"deviation": -1.0}, "must not be negative"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, object], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        make_synthetic(**arguments)  # type: ignore[arg-type]


def test_one_choice_spaces_have_only_the_teacher() -> None:
    space = make_synthetic(0, stages=3, choices=1)
    assert space.space.n_candidates == 1
    assert divergences(space).tolist() == [0.0]
