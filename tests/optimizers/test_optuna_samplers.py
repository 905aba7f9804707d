"""Optuna's samplers as optimizers."""

import optuna
import pytest

from nas.errors import InputError
from nas.optimizers.contract import additive_divergence, drive, make_problem, trial
from nas.optimizers.optuna_samplers import OptunaOptimizer, nsga2, sampler_by_name, seeded, tpe
from nas.optimizers.pool import Turn


def test_trials_become_constrained_optuna_trials() -> None:
    problem = make_problem((3, 3), eps=(0.3,), macs_at_most=0.9)
    log = [trial(0, (1, 0), problem, 0.1), trial(1, (2, 2), problem, None)]
    study = OptunaOptimizer(problem)._study(Turn.of(problem, 0, log, [(0, 2)]))
    teacher, told, failed, running = study.trials
    assert teacher.constraints["divergence"] == pytest.approx(-0.3)
    assert teacher.constraints["macs"] > 0
    assert told.constraints["divergence"] == pytest.approx(-0.2)
    assert told.value == log[0].costs["params"]
    assert told.params == {"s0": 1, "s1": 0}
    assert failed.state == optuna.trial.TrialState.FAIL
    assert running.state == optuna.trial.TrialState.RUNNING


def test_feasibility_decides_what_optuna_calls_best() -> None:
    problem = make_problem((3, 3), eps=(0.3,))
    log = [trial(0, (2, 2), problem, 0.9), trial(1, (1, 0), problem, 0.1)]
    study = OptunaOptimizer(problem)._study(Turn.of(problem, 0, log, []))
    assert study.best_trial.params == {"s0": 1, "s1": 0}


def test_duplicates_are_replaced_and_counted() -> None:
    problem = make_problem((2, 2))
    optimizer = OptunaOptimizer(problem, sampler="random", retries=0)
    trials = drive(optimizer, problem, additive_divergence, 4)
    assert len({t.candidate for t in trials}) == 3
    assert optimizer.duplicates > 0


@pytest.mark.parametrize("name", ["tpe", "nsga2", "nsga3", "gp", "random", "TPESampler", "BruteForceSampler"])
def test_any_sampler_can_be_named(name: str) -> None:
    problem = make_problem((3, 2, 3))
    assert len(drive(OptunaOptimizer(problem, sampler=name), problem, additive_divergence, 3)) == 3


class Own(optuna.samplers.RandomSampler):
    """A sampler whose class is not Optuna's."""


@pytest.mark.parametrize("sampler", [optuna.samplers.TPESampler(n_startup_trials=2, multivariate=False), Own()])
def test_a_sampler_object_is_copied_and_seeded(sampler: optuna.samplers.BaseSampler) -> None:
    problem = make_problem((4,) * 6)
    runs = [[t.candidate for t in drive(OptunaOptimizer(problem, seed, sampler=sampler), problem, additive_divergence, 6)] for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]


def test_seeding_reaches_samplers_inside_samplers() -> None:
    inner = seeded(optuna.samplers.TPESampler(), 3)._random_sampler  # type: ignore[attr-defined]
    outer = seeded(optuna.samplers.TPESampler(), 3)._random_sampler  # type: ignore[attr-defined]
    assert inner._rng.rng.randint(1 << 30) == outer._rng.rng.randint(1 << 30)


def test_an_unknown_sampler_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(InputError, match="unknown Optuna sampler 'tp'; did you mean 'tpe'"):
        sampler_by_name("tp")


def test_a_sampler_that_needs_arguments_must_be_passed_as_an_object() -> None:
    with pytest.raises(InputError, match="pass the sampler itself"):
        sampler_by_name("GridSampler")


def test_genetic_samplers_see_generations() -> None:
    problem = make_problem((4,) * 6)
    trials = drive(nsga2(problem), problem, additive_divergence, 25)
    study = nsga2(problem)._study(Turn.of(problem, 0, trials, []))
    generations = [t.system_attrs["NSGAIISampler:generation"] for t in study.trials]
    assert generations == [number // 10 for number in range(26)]


def test_tpe_beats_chance_on_an_easy_problem() -> None:
    problem = make_problem((3,) * 6, eps=(0.8,))
    trials = drive(tpe(problem, 1), problem, additive_divergence, 40)
    late = [t.divergence or 0 for t in trials[20:]]
    early = [t.divergence or 0 for t in trials[:10]]
    assert sum(late) / len(late) < sum(early) / len(early)
