"""`eps_gp` for people who live in Optuna."""

from typing import Any, final

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState

from nas.errors import InputError
from nas.optimizers.eps_gp import EpsGP
from nas.problem import Problem
from nas.protocols import OptimizerFactory
from nas.space import Candidate
from nas.trial import Trial


@final
class EpsGPSampler(BaseSampler):
    """Samples with `eps_gp`: one categorical parameter a stage, named like the stage, over its choices' names.

    The objective function returns the cost and states the excess, `trial.set_constraint("divergence", divergence - eps)`; a single eps.

        def objective(trial):
            names = {stage.name: trial.suggest_categorical(stage.name, [c.name for c in stage.choices]) for stage in space.stages}
            trial.set_constraint("divergence", measure(names) - eps)
            return cost(names)

        optuna.create_study(sampler=EpsGPSampler(problem)).optimize(objective, n_trials=50)

    Args:
        problem: the space, its costs and the eps; costs come from here, not from the study.
        optimizer: another optimizer of this toolkit to sample with.

    Attributes:
        finished: whether the last proposal was empty: nothing worth measuring is left, and trials repeat the teacher from then on.
    """

    def __init__(self, problem: Problem, seed: int = 0, *, constraint: str = "divergence", optimizer: OptimizerFactory = EpsGP) -> None:
        if len(problem.eps) != 1:
            raise InputError(f"EpsGPSampler works on one eps, got {len(problem.eps)}; make one study for each")
        self._problem = problem
        self._optimizer = optimizer(problem, seed)
        self._constraint = constraint
        self._independent = RandomSampler(seed=seed)
        self.finished = False

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """One categorical distribution a stage, known before the first trial."""
        del study, trial
        return {stage.name: CategoricalDistribution([choice.name for choice in stage.choices]) for stage in self._problem.space.stages}

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        """The choice names of the optimizer's next candidate."""
        del search_space
        others = [other for other in study.get_trials(deepcopy=False) if other.number != trial.number]
        finished = [other for other in others if other.state.is_finished() and self._candidate(other) is not None]
        trials = [self._trial(number, other) for number, other in enumerate(finished)]
        running = (self._candidate(other) for other in others if other.state == TrialState.RUNNING)
        proposed = self._optimizer.propose(trials, [candidate for candidate in running if candidate is not None])
        self.finished = not proposed
        return dict(self._problem.space.decode(proposed[0] if proposed else self._problem.space.teacher))

    def sample_independent(self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution) -> Any:
        """A random value for a parameter that is no stage."""
        return self._independent.sample_independent(study, trial, param_name, param_distribution)

    def _candidate(self, trial: FrozenTrial) -> Candidate | None:
        """The candidate a trial measures, None while it lacks a stage."""
        names = {stage.name: trial.params.get(stage.name) for stage in self._problem.space.stages}
        return None if None in names.values() else self._problem.space.encode({name: str(choice) for name, choice in names.items()})

    def _trial(self, number: int, frozen: FrozenTrial) -> Trial:
        candidate = self._candidate(frozen) or self._problem.space.teacher
        excess = frozen.constraints.get(self._constraint)
        measured = frozen.state == TrialState.COMPLETE and excess is not None
        divergence = float(excess) + self._problem.eps[0] if measured and excess is not None else None
        return Trial(number, candidate, self._problem.costs.of(candidate), divergence, state="complete" if measured else "failed")
