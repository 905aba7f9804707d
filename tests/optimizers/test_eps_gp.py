"""eps_gp as an optimizer: what it proposes, in which order, and when it stops."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from scipy.special import ndtr

from nas.errors import InputError
from nas.optimizers.acquisition import POWER, Goal, Limit, Pass, score
from nas.optimizers.beliefs import Record, standard_deviation
from nas.optimizers.domain import Domain
from nas.optimizers.enumeration import PairTable, Region, kept_choices
from nas.optimizers.eps_gp import STALL, EpsGP
from nas.optimizers.expected import centred, logs_of, surrogates
from nas.optimizers.selection import believe
from nas.optimizers.stopping import count_cheaper, for_one_eps, probability_of_any
from nas.problem import Bound, CostTable, Problem
from nas.progress import Quiet
from nas.space import Candidate, SearchSpace
from nas.spaces.synthetic import make_synthetic
from nas.trial import Trial, incumbent

Measure = Callable[[Candidate], float | None]


def make_problem(sizes: Sequence[int], seed: int = 0, *, eps: Sequence[float] = (0.003,), known: bool = True) -> Problem:
    rng = np.random.default_rng(seed)
    shape = (len(sizes), max(sizes))
    kept = np.sort(rng.uniform(0.05, 0.9, shape), axis=1)[:, ::-1]
    kept[:, 0] = 1
    size = np.exp(rng.normal(0, 0.6, (len(sizes), 1)))
    errors = np.where(np.arange(shape[1]) > 0, (1 - kept) ** 1.5, 0.0)
    absent = np.arange(shape[1])[None] >= np.array(sizes)[:, None]
    params, macs = np.where(absent, np.nan, size * kept * 1e6), np.where(absent, np.nan, kept * 1e9)
    costs = CostTable({"params": params, "macs": macs}, {"params": 5e5})
    return Problem(SearchSpace.of_sizes("made", sizes), costs, tuple(eps), calibration_errors=np.where(absent, np.nan, errors) if known else None)


def compounding(problem: Problem, seed: int = 0, noise: float = 0.03) -> Measure:
    """A landscape of losses that follow the problem's calibration errors, with a deviation of each candidate."""
    rng = np.random.default_rng(seed)
    present = surrogates(problem)
    logs = logs_of(problem.calibration_errors, present)
    log_errors = rng.normal(size=present.shape) if logs is None else centred(logs)
    loss = present * np.exp(log_errors + rng.normal(-7, 0.8, (len(present), 1)) + rng.normal(0, 0.2, present.shape))

    def measure(candidate: Candidate) -> float:
        total = sum(float(loss[s, k]) for s, k in enumerate(candidate))
        own = np.random.default_rng([seed, *candidate]).normal()
        return total**1.05 * math.exp(noise * own) if total else 0.0

    return measure


def told(problem: Problem, candidates: Sequence[Candidate], measure: Measure, stderr: float = 0.0) -> list[Trial]:
    values = [measure(candidate) for candidate in candidates]
    return [
        Trial(n, c, problem.costs.of(c), y, stderr, state="complete" if y is not None else "failed")
        for n, (c, y) in enumerate(zip(candidates, values, strict=True))
    ]


def run(problem: Problem, measure: Measure, n: int, **options: float | bool | int) -> list[Trial]:
    optimizer = EpsGP(problem, **options)  # type: ignore[arg-type]  # a test passes what the signature names
    trials: list[Trial] = []
    while len(trials) < n:
        proposed = optimizer.propose(trials)
        if not proposed:
            break
        trials += [Trial(len(trials), c, problem.costs.of(c), measure(c)) for c in proposed]
    return trials


def goal_of(problem: Problem, trials: Sequence[Trial], **changes: object) -> Goal:
    believed = believe(problem, Record.of(problem, trials))
    fixed = problem.costs.fixed["params"]
    best = tuple(min([t.costs["params"] for t in trials if t.divergence is not None and t.divergence <= e], default=1e9) - fixed for e in problem.eps)
    return Goal(believed.beliefs, believed.weights, problem.eps, best, **changes)  # type: ignore[arg-type]


def everything(problem: Problem) -> np.ndarray:
    return problem.space.enumerate().astype(np.int64)[1:]


def some_trials(problem: Problem, n: int = 12, seed: int = 0) -> list[Trial]:
    rows = np.random.default_rng(seed).permutation(everything(problem))[:n]
    return told(problem, [tuple(row) for row in rows.tolist()], compounding(problem))


def test_the_score_is_the_expected_worth_of_the_saving_by_brute_force() -> None:
    problem = make_problem([3, 3, 4], eps=(0.001, 0.004))
    goal = goal_of(problem, some_trials(problem))
    x = everything(problem)
    cost = problem.cost(x) - problem.costs.fixed["params"]
    expected = np.zeros(len(x))
    for eps, best in zip(goal.eps, goal.best, strict=True):
        likely = sum(w * ndtr((b.threshold(eps) - b.mean(x)) / standard_deviation(b, x)) for b, w in zip(goal.beliefs, goal.weights, strict=True))
        expected += np.maximum(best - cost, 0) ** POWER * likely
    assert np.allclose(np.exp(score(goal, x, cost)), expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("bounded", [False, True])
def test_the_coarse_pass_keeps_candidates_worth_nearly_as_much_as_the_best_of_the_space(seed: int, bounded: bool) -> None:
    problem = make_problem([4] * 8, seed, eps=(0.002, 0.005))
    trials = some_trials(problem, 15, seed)
    macs = problem.costs.by_choice["macs"]
    limits = (Limit(PairTable(macs), 0.6 * float(macs[:, 0].sum())),) if bounded else ()
    goal = goal_of(problem, trials, limits=limits)
    kept = kept_choices(problem, True, False)
    costs = problem.costs.by_choice["params"]
    x = Pass(Region(kept, costs, problem.space.teacher), goal, 200).run()
    whole = everything(problem)
    exact = score(goal, whole, costs[np.arange(8), whole].sum(1))
    if bounded:
        exact[macs[np.arange(8), whole].sum(1) > limits[0].limit] = -np.inf
    assert score(goal, x, costs[np.arange(8), x].sum(1)).max() > exact.max() + math.log(0.7)


@pytest.mark.parametrize("seed", range(3))
def test_the_coarse_pass_keeps_the_best_candidate_where_only_some_stages_were_tried(seed: int) -> None:
    problem = make_problem([4] * 8, seed)
    tried = [tuple(c) for c in np.random.default_rng(seed).integers(0, [4, 4, 4, 4, 4, 1, 1, 1], (40, 8)).tolist() if any(c)]
    goal = goal_of(problem, told(problem, tried, compounding(problem, seed)))
    costs = problem.costs.by_choice["params"]
    x = Pass(Region(kept_choices(problem, True, False), costs, problem.space.teacher), goal, 64).run()
    whole = everything(problem)
    exact = score(goal, whole, costs[np.arange(8), whole].sum(1))
    assert score(goal, x, costs[np.arange(8), x].sum(1)).max() > exact.max() + math.log(0.95)


@pytest.mark.parametrize("seed", range(3))
def test_large_neighbourhoods_find_what_enumeration_finds(seed: int) -> None:
    problem = make_problem([4] * 9, seed)
    trials = some_trials(problem, 15, seed)
    goal = goal_of(problem, trials)
    picks = []
    for enumerable in (10**7, 1000):
        domain = Domain(problem, keep_dominated=True, trust_errors=False, enumerable=enumerable)
        x = domain.top(goal, 300, {t.candidate for t in trials}, 0)
        exact = score(goal, x, problem.cost(x) - problem.costs.fixed["params"])
        picks.append((float(exact.max()), tuple(x[np.argmax(exact)].tolist())))
    assert picks[0][0] == pytest.approx(picks[1][0])
    assert picks[0][1] == picks[1][1]


@pytest.mark.parametrize("stages", [20, 30])
def test_spaces_of_1e12_candidates_and_more_are_searched(stages: int) -> None:
    problem = make_problem([4] * stages)
    trials = run(problem, compounding(problem), 6)
    winner = incumbent(trials, 0.003)
    assert problem.space.n_candidates > 1e12
    assert winner is not None
    assert winner.costs["params"] < 0.9 * problem.cost([problem.space.teacher])[0]


def test_proposals_are_a_pure_function_of_the_log() -> None:
    problem = make_problem([4] * 6, eps=(0.002, 0.006))
    trials = run(problem, compounding(problem), 10)
    old = EpsGP(problem, 3)
    for n in (7, 3, 10, 7):
        assert old.propose(trials[:n], [trials[-1].candidate], 3) == EpsGP(problem, 3).propose(trials[:n], [trials[-1].candidate], 3)


def test_it_finds_the_optimum_of_a_small_landscape_within_a_fraction_of_it() -> None:
    problem = make_problem([4] * 6, 1)
    measure = compounding(problem, 1)
    trials = run(problem, measure, 40)
    cheapest = min(float(problem.cost([c])[0]) for c in map(tuple, problem.space.enumerate().tolist()) if measure(c) <= 0.003)
    winner = incumbent(trials, 0.003)
    assert winner is not None
    assert winner.costs["params"] == pytest.approx(cheapest)


def test_a_batch_is_distinct_unseen_and_starts_with_the_single_proposal() -> None:
    problem = make_problem([4] * 6)
    trials = some_trials(problem)
    optimizer = EpsGP(problem)
    pending = optimizer.propose(trials)
    batch = optimizer.propose(trials, n=6)
    later = optimizer.propose(trials, pending, n=6)
    assert batch[0] == pending[0]
    assert len({*batch}) == 6
    assert len({*later}) == 6
    assert not {*later} & {*pending, *(t.candidate for t in trials)}


def test_what_is_under_way_may_be_the_teacher() -> None:
    problem = make_problem([4] * 5)
    assert EpsGP(problem).propose(some_trials(problem), [problem.space.teacher, (1, 1, 0, 0, 0)])


@pytest.mark.parametrize("enumerable", [10**6, 10])
def test_nothing_dearer_than_the_incumbent_is_proposed_unless_the_search_stalls(enumerable: int) -> None:
    problem = make_problem([3] * 5)
    trials = run(problem, compounding(problem), STALL, enumerable=enumerable)
    for n, trial in enumerate(trials):
        best = incumbent(trials[:n], 0.003)
        assert best is None or trial.costs["params"] < best.costs["params"]


def test_a_batch_asks_for_more_than_there_is() -> None:
    problem = make_problem([2, 2], known=False)
    batch = EpsGP(problem, delta=0).propose([], n=10)
    assert sorted(batch) == [(0, 1), (1, 0), (1, 1)]


@pytest.mark.parametrize("sizes", [[1], [1, 1, 1]])
def test_a_space_of_one_candidate_ends_at_once(sizes: list[int]) -> None:
    assert EpsGP(make_problem(sizes)).propose([]) == []


@pytest.mark.parametrize("value", [1.0, 0.0, -0.5, None, 0.003])
@pytest.mark.parametrize("sizes", [[2], [3, 1, 2], [2, 2, 3]])
def test_constant_and_failed_measurements_end_cleanly_without_repeats(value: float | None, sizes: list[int]) -> None:
    problem = make_problem(sizes, known=False)
    trials = run(problem, lambda c: value, 30, delta=0)
    candidates = [t.candidate for t in trials]
    assert len(set(candidates)) == len(candidates) <= problem.space.n_candidates - 1
    feasible = [t.costs["params"] for t in trials if t.divergence is not None and t.divergence <= 0.003]
    best = min([float(problem.cost([problem.space.teacher])[0]), *feasible])
    unseen = {*itertools.product(*map(range, sizes))} - {*candidates, problem.space.teacher}
    assert not [c for c in unseen if problem.cost([c])[0] < best]


def test_failed_trials_are_not_proposed_again_and_do_not_reach_the_model() -> None:
    problem = make_problem([3, 3, 3])
    first = EpsGP(problem).propose([])
    failed = [Trial(0, first[0], problem.costs.of(first[0]), None, state="failed", reason="boom")]
    assert EpsGP(problem).propose(failed) != first
    assert len(Record.of(problem, failed).y) == 0


def test_bounds_and_rules_hold_for_every_proposal() -> None:
    sizes = [4] * 5
    base = make_problem(sizes)
    limit = 0.8 * float(base.costs.by_choice["macs"][:, 0].sum())
    space = SearchSpace("ruled", base.space.stages, rules=(lambda c: c[0] != c[1], lambda c: sum(c) % 5 == 2))
    problem = Problem(space, base.costs, (0.003,), bounds=(Bound("macs", limit),), calibration_errors=base.calibration_errors)
    trials = run(problem, compounding(problem), 15)
    assert trials
    assert problem.allowed([t.candidate for t in trials]).all()


def test_rules_that_forbid_everything_end_the_search() -> None:
    base = make_problem([4] * 6)
    space = SearchSpace("forbidden", base.space.stages, rules=(lambda c: not any(c),))
    assert EpsGP(Problem(space, base.costs, (0.003,))).propose([]) == []


@pytest.mark.parametrize("errors", [None, "nan"])
def test_unknown_calibration_errors_are_no_obstacle(errors: str | None) -> None:
    base = make_problem([3, 4, 3])
    assert base.calibration_errors is not None
    unknown = None if errors is None else np.where(np.arange(4) > 1, np.nan, base.calibration_errors)
    problem = Problem(base.space, base.costs, base.eps, calibration_errors=unknown)
    trials = run(problem, compounding(base), 12)
    assert incumbent(trials, 0.003) is not None


def test_an_eps_of_zero_is_searched() -> None:
    problem = make_problem([3, 3, 3], eps=(0.0,))
    trials = run(problem, lambda c: -0.001 if c[0] else 0.001 * sum(c), 26, delta=0)
    assert incumbent(trials, 0.0) is not None


def test_dominated_choices_are_left_out_unless_asked_for_or_distrusted() -> None:
    costs = CostTable({"params": np.array([[10.0, 5, 6, 10, 4]]), "macs": np.array([[10.0, 5, 4, 10, 9]])})
    errors = np.array([[0, 0.1, 0.5, 0.3, np.nan]])
    plain = Problem(SearchSpace.of_sizes("one", [5]), costs, (0.1,), calibration_errors=errors)
    bounded = Problem(plain.space, costs, (0.1,), bounds=(Bound("macs", 9.5),), calibration_errors=errors)
    assert kept_choices(plain, False, True)[0].tolist() == [0, 1, 4]
    assert kept_choices(bounded, False, True)[0].tolist() == [0, 1, 2, 4]
    assert kept_choices(plain, False, False)[0].tolist() == [0, 1, 2, 4]
    assert kept_choices(plain, True, True)[0].tolist() == [0, 1, 2, 3, 4]


def test_dominated_choices_are_named_and_come_last() -> None:
    costs = CostTable({"params": np.array([[10.0, 5, 6], [10.0, 5, 6]])})
    errors = np.array([[0, 0.1, 0.5], [0, 0.1, 0.5]])
    problem = Problem(SearchSpace.of_sizes("two", [3, 3]), costs, (0.1,), calibration_errors=errors)
    optimizer = EpsGP(problem, delta=0)
    assert optimizer.pruned([]) == {"s0": ["c2"], "s1": ["c2"]}
    candidates = [t.candidate for t in run(problem, lambda c: 1.0, 20, delta=0)]
    assert {*candidates[:3]} == {(0, 1), (1, 0), (1, 1)}
    assert len(candidates) == 8


def test_a_stalled_search_measures_an_untried_block_alone() -> None:
    problem = make_problem([4] * 5)
    candidates: list[Candidate] = list(itertools.product((2, 3), repeat=5))
    trials = told(problem, candidates[:STALL], lambda c: 1.0)
    proposed = EpsGP(problem).propose(trials)[0]
    assert sum(k > 0 for k in proposed) == 1
    assert all(candidate[s] != k for candidate in candidates[:STALL] for s, k in enumerate(proposed) if k)


def test_the_statement_counts_what_is_cheaper_and_ends_the_search() -> None:
    problem = make_problem([3] * 5, 2)
    measure = compounding(problem, 2, noise=0.01)
    trials = run(problem, measure, 200)
    statement = EpsGP(problem).statement(trials)[0.003]
    winner = incumbent(trials, 0.003)
    assert winner is not None
    seen = {t.candidate for t in trials}
    cheaper = [c for c in map(tuple, problem.space.enumerate().tolist()) if c not in seen and problem.cost([c])[0] < winner.costs["params"]]
    assert statement.p_better < 0.01
    assert statement.n_cheaper == len(cheaper)
    assert len(trials) < 100
    assert EpsGP(problem).propose(trials) == []


def test_the_statement_does_not_depend_on_the_order_of_the_candidates() -> None:
    problem = make_problem([4] * 6, 2)
    measure = compounding(problem, 2)
    optimizer = EpsGP(problem)
    trials = run(problem, measure, 8)
    search = optimizer._search(trials, ())
    goal = for_one_eps(search.goal, 0)
    x = search.top(goal, 2000)
    assert probability_of_any(goal, x[::-1].copy(), 0) == pytest.approx(probability_of_any(goal, x, 0), rel=1e-6)


def test_the_statement_counts_only_what_the_bounds_allow_or_says_at_most() -> None:
    base = make_problem([4] * 5, 2)
    macs = base.costs.of(base.space.teacher)["macs"]
    problem = dataclasses.replace(base, bounds=(Bound("macs", 0.8 * macs), Bound("params", 0.9 * base.costs.of(base.space.teacher)["params"])))
    trials = run(problem, compounding(problem, 2), 8)
    everyone = everything(problem)
    for told_so_far in (trials[:0], trials):
        best = min((t.costs["params"] for t in told_so_far if (t.divergence or 0.0) <= 0.003), default=math.inf)
        allowed = everyone[problem.allowed(everyone) & (problem.cost(everyone) < best)]
        cheaper = {tuple(row) for row in allowed.tolist()} - {t.candidate for t in told_so_far}
        statement = EpsGP(problem).statement(told_so_far)[0.003]
        assert (statement.n_cheaper, statement.at_most) == (len(cheaper), False)
        above = EpsGP(problem, enumerable=10).statement(told_so_far)[0.003]
        assert above.n_cheaper >= len(cheaper)
        assert above.any == math.isinf(best)
        assert f", at most {above.n_cheaper:.3g} {'' if above.any else 'cheaper '}candidates unmeasured" in str(above)
    ruled = dataclasses.replace(base, space=SearchSpace("ruled", base.space.stages, rules=(lambda c: c[0] != 1,)))
    assert "at most" in str(EpsGP(ruled).statement([])[0.003])


def test_counting_by_convolution_agrees_with_counting_one_by_one() -> None:
    problem = make_problem([4] * 7)
    costs = problem.costs.by_choice["params"]
    totals = problem.cost(problem.space.enumerate()) - problem.costs.fixed["params"]
    kept = [np.arange(4)] * 7
    for best in np.quantile(totals, [0.1, 0.5, 0.9]):
        assert count_cheaper(kept, costs, float(best)) == pytest.approx(int((totals < best).sum()), rel=0.02)


def test_a_delta_that_is_no_probability_is_refused() -> None:
    with pytest.raises(InputError, match="delta must be at least 0 and below 1, got 2"):
        EpsGP(make_problem([2]), delta=2)


def test_the_model_is_offered_as_a_botorch_model() -> None:
    problem = make_problem([3, 3, 3])
    model = EpsGP(problem).model(some_trials(problem))
    assert model.train_inputs[0].shape == (12, 3)


def test_what_was_foreseen_exactly_is_found_sooner() -> None:
    task = make_synthetic(11, stages=6, choices=4, compounding=0.0, noise=0.0, foresight=0.0).prepare(Quiet())
    problem = Problem(task.space, task.costs, (0.003,), calibration_errors=task.calibration_errors)

    def measure(candidate: Candidate) -> float | None:
        return task.evaluator.measure([candidate])[0].divergence

    def least(problem: Problem) -> float:
        found = incumbent(run(problem, measure, 3), 0.003, "params")
        return found.costs["params"] if found else math.inf

    assert least(dataclasses.replace(problem, expected_losses=task.expected_losses)) < least(problem)


def test_foreseen_losses_dominate_in_place_of_calibration_errors() -> None:
    costs = CostTable({"params": np.array([[10.0, 8.0, 6.0]])})
    problem = Problem(SearchSpace.of_sizes("one", [3]), costs, (0.1,), calibration_errors=np.array([[0.0, 1.0, 9.0]]))
    assert EpsGP(problem).pruned([]) == {}
    assert EpsGP(dataclasses.replace(problem, expected_losses=np.array([[0.0, 9.0, 1.0]]))).pruned([]) == {"s0": ["c1"]}


@pytest.mark.parametrize("factor", [1e-300, 1e-30, 1e30, 1e300])
def test_losses_foreseen_in_quite_another_unit_are_no_reason_to_stop(factor: float) -> None:
    task = make_synthetic(11, stages=4, choices=3, foresight=0.0).prepare(Quiet())
    assert task.expected_losses is not None
    problem = Problem(task.space, task.costs, (0.02,), expected_losses=task.expected_losses * factor)
    assert len(run(problem, lambda candidate: task.evaluator.measure([candidate])[0].divergence, 3)) > 0
