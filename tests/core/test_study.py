from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nas.errors import ContractError
from nas.problem import Bound, CostTable, Problem
from nas.record import Record
from nas.space import Candidate, SearchSpace
from nas.study import Study
from nas.trial import Measurement, Trial

SPACE = SearchSpace.of_sizes("demo", [3, 3])
COSTS = CostTable({"params": np.array([[10.0, 5.0, 1.0], [10.0, 5.0, 1.0]])}, {"params": 1.0})


class InOrder:
    """Proposes all candidates but the teacher, last stage fastest."""

    def propose(self, trials: Sequence[Trial], pending: Sequence[Candidate] = (), n: int = 1) -> list[Candidate]:
        taken = {trial.candidate for trial in trials} | set(pending)
        rows = [tuple(row) for row in SPACE.enumerate().tolist()[1:]]
        return [row for row in rows if row not in taken][:n]


class Quadratic:
    """Divergence 0.01 times the sum of squared choices; counts calls; `bad` candidates measure as given."""

    def __init__(self, scale: float = 0.01, bad: dict[Candidate, float | None] | None = None, racing: bool = False) -> None:
        self.scale, self.bad, self.racing = scale, bad or {}, racing
        self.calls: list[tuple[Candidate, tuple[float, ...]]] = []

    def measure(self, candidates: Sequence[Candidate], eps: Sequence[float] = ()) -> list[Measurement]:
        self.calls += [(candidate, tuple(eps)) for candidate in candidates]
        complete = not (self.racing and eps)
        return [Measurement(self.bad.get(c, self.scale * sum(k * k for k in c)), 0.001, 128 if complete else 64, 0.5, complete=complete) for c in candidates]


def study(eps: tuple[float, ...] = (0.02,), evaluator: Quadratic | None = None, verifier: Quadratic | None = None, record: Record | None = None) -> Study:
    return Study(Problem(SPACE, COSTS, eps), InOrder(), evaluator or Quadratic(), record, verifier=verifier)


def test_a_search_measures_until_the_trials_are_used_up() -> None:
    searched = study()
    assert searched.run(5) == "trials"
    assert [t.candidate for t in searched.trials] == [(0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert searched.n_measured == 5


class Averages(InOrder):
    """Predicts the mean of what was measured."""

    def predict(self, trials: Sequence[Trial], candidates: Sequence[Candidate]) -> np.ndarray:
        assert trials
        return np.full((len(candidates), 3), np.mean([trial.divergence for trial in trials]))

    def cost_at(self, trials: Sequence[Trial], eps: float) -> np.ndarray:
        raise NotImplementedError


def test_predictions_are_asked_for_from_the_first_trial_on_foreseen_or_not() -> None:
    for losses in (None, np.array([[0, 0.01, np.nan], [0, np.nan, np.nan]])):
        problem = Problem(SPACE, COSTS, (0.02,), expected_losses=losses)
        searched = Study(problem, Averages(), Quadratic())
        searched.run(3)
        assert [trial.attrs.get("predicted") for trial in searched.trials] == [None, [0.01] * 3, [0.025] * 3]


def test_an_exhausted_space_ends_the_search_early() -> None:
    searched = study()
    assert searched.run(100) == "exhausted"
    assert len(searched.trials) == 8


def test_a_killed_search_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    whole = study()
    whole.run(8)
    study(record=Record(tmp_path / "study.db")).run(3)
    resumed = study(record=Record(tmp_path / "study.db"))
    resumed.run(8)
    assert resumed.trials == whole.trials


def test_each_eps_has_the_cheapest_feasible_trial_as_winner() -> None:
    searched = study((0.02, 0.05))
    searched.run(8)
    winners = [searched.winner(eps) for eps in (0.02, 0.05)]
    assert [w.trial.candidate for w in winners if w.trial] == [(1, 1), (1, 2)]
    assert all(w.feasible for w in winners)


def test_a_winner_that_heldout_data_refutes_gives_way_to_the_next_cheapest(tmp_path: Path) -> None:
    verifier = Quadratic(bad={(1, 1): 0.0241, (0, 1): 0.024})
    searched = study(verifier=verifier, record=Record(tmp_path / "study.db"))
    searched.run(8)
    winner = searched.winner(0.02)
    assert winner.trial is not None
    assert winner.trial.candidate == (0, 1)
    assert [t.candidate for t, _ in winner.rejected] == [(1, 1)]
    assert searched.n_measured == 8 + 2
    again = study(verifier=verifier, record=Record(tmp_path / "study.db"))
    assert again.winner(0.02) == winner
    assert len(verifier.calls) == 2


def test_nothing_feasible_reports_the_least_divergent_trial() -> None:
    searched = study((0.001,))
    searched.run(8)
    winner = searched.winner(0.001)
    assert not winner.feasible
    assert winner.trial is not None
    assert winner.trial.candidate == (0, 1)


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), float("-inf")])
def test_a_measurement_without_a_finite_value_is_a_failed_trial_and_never_wins(value: float | None) -> None:
    searched = study(evaluator=Quadratic(bad={(1, 1): value}))
    searched.run(8)
    failed = [t for t in searched.trials if t.state == "failed"]
    assert [t.candidate for t in failed] == [(1, 1)]
    assert failed[0].divergence is None
    winner = searched.winner(0.02)
    assert winner.trial is not None
    assert winner.trial.candidate == (0, 1)


class Given:
    """Measures whatever it was given."""

    def __init__(self, measured: Any) -> None:
        self.measured = measured

    def measure(self, candidates: Sequence[Candidate], eps: Sequence[float] = ()) -> list[Any]:
        return [self.measured for _ in candidates]


def test_numbers_of_numpy_are_recorded_as_python_has_them(tmp_path: Path) -> None:
    given = Measurement(np.float32(0.5), np.float32(0.25), np.int64(64), np.float32(2.0))  # type: ignore[arg-type]
    searched = Study(Problem(SPACE, COSTS, (0.6,)), InOrder(), Given(given), Record(tmp_path / "study.db"), verifier=Given(given))
    searched.run(1)
    winner = searched.winner(0.6)
    assert winner.trial is not None
    assert winner.heldout is not None
    for found in (winner.trial, winner.heldout):
        assert (found.divergence, found.stderr, found.n_samples, found.seconds) == (0.5, 0.25, 64, 2.0)
    assert Record(tmp_path / "study.db").trials() == searched.trials


@pytest.mark.parametrize(
    ("measured", "message"),
    [
        (Measurement(0.5, float("nan")), "stderr must be a finite number of at least 0, got nan"),
        (Measurement(0.5, n_samples=1.5), "n_samples must be a whole number"),  # type: ignore[arg-type]
        (0.5, "it must be a Measurement, got 0.5"),
    ],
)
def test_what_no_record_can_hold_is_the_evaluators_error(measured: Any, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        Study(Problem(SPACE, COSTS, (0.6,)), InOrder(), Given(measured)).run(1)


def test_a_winner_whose_heldout_divergence_is_not_finite_is_passed_over() -> None:
    searched = study(verifier=Quadratic(bad={(1, 1): float("nan")}))
    searched.run(8)
    ((trial, heldout),) = searched.winner(0.02).rejected
    assert trial.candidate == (1, 1)
    assert heldout.divergence is None


def test_a_trial_that_may_win_rests_on_all_samples() -> None:
    searched = study(evaluator=Quadratic(racing=True))
    searched.run(8)
    by_candidate = {t.candidate: t.n_samples for t in searched.trials}
    assert by_candidate[0, 1] == by_candidate[1, 1] == 128
    assert by_candidate[2, 2] == by_candidate[0, 2] == 64


def test_an_optimizer_that_repeats_itself_or_leaves_the_space_is_an_error() -> None:
    class Stubborn(InOrder):
        def propose(self, trials: Sequence[Trial], pending: Sequence[Candidate] = (), n: int = 1) -> list[Candidate]:
            return [(0, 1)]

    class Outside(InOrder):
        def propose(self, trials: Sequence[Trial], pending: Sequence[Candidate] = (), n: int = 1) -> list[Candidate]:
            return [(0, 3)]

    with pytest.raises(ContractError, match=r"Stubborn proposed \(0, 1\) again"):
        Study(Problem(SPACE, COSTS, (0.02,)), Stubborn(), Quadratic()).run(3)
    with pytest.raises(ContractError, match=r"Outside proposed \(0, 3\): stage 's1' has choices 0\.\.2, got 3"):
        Study(Problem(SPACE, COSTS, (0.02,)), Outside(), Quadratic()).run(3)


def test_a_proposal_that_breaks_a_bound_or_a_rule_is_an_error_but_the_teacher_may() -> None:
    class Gives(InOrder):
        def __init__(self, *given: Candidate) -> None:
            self.given = given

        def propose(self, trials: Sequence[Trial], pending: Sequence[Candidate] = (), n: int = 1) -> list[Candidate]:
            return [self.given[len(trials)]]

    def no_twins(candidate: Candidate) -> bool:
        return candidate[0] != candidate[1]

    bounded = Problem(SearchSpace("demo", SPACE.stages, (no_twins,)), COSTS, (0.02,), bounds=(Bound("params", 15.0),))
    with pytest.raises(ContractError, match=r"Gives proposed \(0, 1\): its params is 16, the bound is params<=15; problem\.allowed"):
        Study(bounded, Gives((0, 1)), Quadratic()).run(1)
    with pytest.raises(ContractError, match=r"Gives proposed \(1, 1\): it breaks rule 1 of the space, no_twins"):
        Study(bounded, Gives((1, 1)), Quadratic()).run(1)
    allowed = Study(bounded, Gives((0, 0), (1, 2)), Quadratic())
    assert allowed.run(2) == "trials"
    assert [t.candidate for t in allowed.trials] == [(0, 0), (1, 2)]


def test_a_space_of_one_candidate_ends_with_the_teacher() -> None:
    space = SearchSpace.of_sizes("one", [1])
    problem = Problem(space, CostTable({"params": np.array([[3.0]])}), (0.1,))

    class Nothing:
        def propose(self, trials: Sequence[Trial], pending: Sequence[Candidate] = (), n: int = 1) -> list[Candidate]:
            return []

    searched = Study(problem, Nothing(), Quadratic())
    assert searched.run(10) == "exhausted"
    winner = searched.winner(0.1)
    assert winner.feasible
    assert winner.trial is not None
    assert winner.trial.candidate == (0,)
