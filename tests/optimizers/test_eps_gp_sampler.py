"""`eps_gp` inside Optuna."""

import optuna
import pytest

from nas.errors import InputError
from nas.optimizers.contract import additive_divergence, drive, make_problem
from nas.optimizers.eps_gp import EpsGP
from nas.optimizers.eps_gp_sampler import EpsGPSampler
from nas.problem import Problem


def _study(problem: Problem, sampler: EpsGPSampler, n_trials: int) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)

    def objective(frozen: optuna.Trial) -> float:
        names = {stage.name: frozen.suggest_categorical(stage.name, [choice.name for choice in stage.choices]) for stage in problem.space.stages}
        candidate = problem.space.encode({name: str(choice) for name, choice in names.items()})
        frozen.set_constraint("divergence", additive_divergence(candidate) - problem.eps[0])
        return problem.costs.of(candidate)["params"]

    study = optuna.create_study(sampler=sampler)
    study.optimize(objective, n_trials=n_trials)
    return study


def test_a_study_makes_the_proposals_of_eps_gp() -> None:
    problem = make_problem((3, 3, 3), eps=(0.55,))
    study = _study(problem, EpsGPSampler(problem), 6)
    direct = drive(EpsGP(problem), problem, additive_divergence, 6)
    proposed = [problem.space.encode(frozen.params) for frozen in study.trials]
    assert proposed[: len(direct)] == [t.candidate for t in direct]


def test_failed_trials_are_not_repeated() -> None:
    problem = make_problem((2, 2))
    study = optuna.create_study(sampler=EpsGPSampler(problem))
    seen = []
    for _ in range(3):
        asked = study.ask(_axes(problem))
        seen.append(tuple(asked.params.values()))
        study.tell(asked, state=optuna.trial.TrialState.FAIL)
    assert len(set(seen)) == 3


def _axes(problem: Problem) -> dict[str, optuna.distributions.BaseDistribution]:
    return {s.name: optuna.distributions.CategoricalDistribution([c.name for c in s.choices]) for s in problem.space.stages}


def test_it_says_when_nothing_is_left() -> None:
    problem = make_problem((2, 2))
    sampler = EpsGPSampler(problem)
    study = _study(problem, sampler, 5)
    assert sampler.finished
    assert problem.space.encode(study.trials[-1].params) == problem.space.teacher


def test_parameters_that_are_no_stages_are_drawn_at_random() -> None:
    problem = make_problem((2, 2))
    study = optuna.create_study(sampler=EpsGPSampler(problem))
    assert 0 <= study.ask().suggest_float("learning_rate", 0, 1) <= 1


def test_several_eps_are_refused() -> None:
    with pytest.raises(InputError, match="one eps, got 2"):
        EpsGPSampler(make_problem((2, 2), eps=(0.1, 0.2)))
