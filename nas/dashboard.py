"""A run as Optuna studies, one for each eps, for optuna-dashboard and whatever else reads Optuna's storages."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from nas.amounts import exact
from nas.errors import InputError
from nas.findings import Findings
from nas.problem import Problem
from nas.trial import Trial

if TYPE_CHECKING:
    from optuna.storages import BaseStorage
    from optuna.study import Study


def mirror(findings: Findings, storage: "BaseStorage") -> list["Study"]:
    """One Optuna study an eps, which minimises the cost; trials that are not in the storage yet are added.

    Raises:
        InputError: the run recorded no costs of blocks, so that nothing says what its trials chose.
    """
    problem = findings.problem
    if problem is None:
        raise InputError(f"run '{findings.path}' has nothing to show on a dashboard: {' '.join(findings.missing)}")
    return [_mirror_one(findings, problem, eps, storage) for eps in findings.eps]


def _mirror_one(findings: Findings, problem: Problem, eps: float, storage: "BaseStorage") -> "Study":
    name = f"{findings.space} eps {exact(eps)}"
    study = optuna.create_study(storage=storage, study_name=name, load_if_exists=True, direction="minimize")
    if not study.trials:
        study.set_user_attr("objective", problem.objective)
        study.set_user_attr("teacher", findings.teacher)
    study.add_trials(as_optuna(problem, findings.trials[len(study.trials) :], eps))
    return study


def as_optuna(problem: Problem, trials: Sequence[Trial], eps: float) -> list[FrozenTrial]:
    """The trials as Optuna's: choices are categorical parameters, L - eps and cost - limit are constraints (feasible if at most 0).

    Constraints are written twice: by name as Optuna 5 reads them, and as the list that optuna-dashboard reads.
    """
    distributions: dict[str, BaseDistribution] = {
        stage.name: CategoricalDistribution(tuple(choice.name for choice in stage.choices)) for stage in problem.space.stages
    }
    return [_as_optuna(problem, trial, eps, distributions) for trial in trials]


def _as_optuna(problem: Problem, trial: Trial, eps: float, distributions: dict[str, BaseDistribution]) -> FrozenTrial:
    measured = trial.divergence is not None and math.isfinite(trial.divergence)
    constraints = {"L": (trial.divergence or 0.0) - eps} if measured else {}
    for bound in problem.bounds if measured else ():  # the tightest one, where several bound one cost
        constraints[bound.metric] = max(trial.costs[bound.metric] - bound.limit, constraints.get(bound.metric, -math.inf))
    return create_trial(
        state=TrialState.COMPLETE if measured else TrialState.FAIL,
        value=trial.costs[problem.objective] if measured else None,
        params=problem.space.decode(trial.candidate),
        distributions=distributions,
        user_attrs={"L": trial.divergence, "stderr": trial.stderr, "n_samples": trial.n_samples, "seconds": trial.seconds, "reason": trial.reason}
        | {metric: cost for metric, cost in trial.costs.items() if metric != problem.objective},
        system_attrs={"constraints": list(constraints.values())} | {f"constraints:{name}": value for name, value in constraints.items()},
    )
