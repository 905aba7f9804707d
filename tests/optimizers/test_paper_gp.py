"""The paper's recipe."""

from nas.optimizers.contract import additive_divergence, drive, make_problem, trial
from nas.optimizers.paper_gp import PaperGP
from nas.optimizers.pool import Turn


def test_a_gp_proposal_is_cheaper_than_most_once_something_is_feasible() -> None:
    problem = make_problem((3, 3, 3, 3), eps=(0.6,))
    trials = drive(PaperGP(problem, n_initial=10), problem, additive_divergence, 13)
    guided = [t.costs["params"] for t in trials[10:]]
    assert max(guided) < problem.costs.of(problem.space.teacher)["params"]


def test_one_run_per_eps_sees_its_own_trials_and_the_teacher() -> None:
    problem = make_problem((3, 3), eps=(0.1, 0.2))
    log = [trial(i, c, problem, 0.5) for i, c in enumerate([(0, 1), (1, 0), (1, 1), (2, 0)])]
    own = PaperGP(problem)._own(Turn.of(problem, 0, log, []))
    assert [t.candidate for t in own] == [(0, 0), (0, 1), (1, 1)]


def test_large_spaces_are_searched_by_ascent() -> None:
    problem = make_problem((4,) * 10)
    assert problem.space.n_candidates > 1_000_000
    trials = drive(PaperGP(problem, n_initial=4), problem, additive_divergence, 5)
    assert len(trials) == 5
