"""Any Optuna sampler as an optimizer: an in-memory study is rebuilt from the log for every proposal, so that proposals are pure."""

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, final

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseGASampler, BaseSampler
from optuna.samplers._lazy_random_state import LazyRandomState  # the one place where samplers keep their random numbers
from optuna.trial import FrozenTrial, TrialState, create_trial

from nas.errors import InputError, did_you_mean
from nas.optimizers.pool import Turn, TurnTaking
from nas.problem import Problem
from nas.space import Candidate
from nas.trial import Trial

SAMPLERS: Final[dict[str, Callable[[], BaseSampler]]] = {
    "tpe": lambda: optuna.samplers.TPESampler(multivariate=True, constant_liar=True, n_startup_trials=10),
    "nsga2": lambda: optuna.samplers.NSGAIISampler(population_size=10),
    "nsga3": lambda: optuna.samplers.NSGAIIISampler(population_size=10),
    "gp": lambda: optuna.samplers.GPSampler(deterministic_objective=True, n_startup_trials=10),
    "random": optuna.samplers.RandomSampler,
}
"""Short names, with their arguments written out because Optuna's defaults change; populations suit budgets of 50 measurements."""


@final
class OptunaOptimizer(TurnTaking):
    """Asks an Optuna sampler; the divergence and the bounds are its constraints.

    A proposal that was measured, is pending or breaks a rule is asked for again, then replaced by a random new candidate.

    Args:
        sampler: a short name of `SAMPLERS`, the name of a class in `optuna.samplers`, or a sampler; the sampler itself is never changed.
        retries: how often a proposal that cannot be used is asked for again.

    Attributes:
        duplicates: how many of the sampler's proposals could not be used.
    """

    def __init__(self, problem: Problem, seed: int = 0, *, sampler: str | BaseSampler = "tpe", retries: int = 3) -> None:
        super().__init__(problem, seed)
        self.duplicates = 0
        with _quiet():
            self._sampler = sampler_by_name(sampler) if isinstance(sampler, str) else sampler
        self._retries = retries
        self._axes: dict[str, BaseDistribution] = {stage.name: CategoricalDistribution(range(len(stage.choices))) for stage in problem.space.stages}

    @staticmethod
    def check_argument(name: str) -> None:
        """Raises unless `optuna:NAME` names a sampler."""
        sampler_by_name(name)

    def _suggest(self, turn: Turn) -> Candidate | None:
        with _quiet():
            study = self._study(turn)
            for _ in range(1 + self._retries):
                asked = study.ask(self._axes)
                candidate = tuple(int(asked.params[name]) for name in self._axes)
                if turn.open([candidate]):
                    return candidate
                self.duplicates += 1
                study.tell(asked, state=TrialState.FAIL)
        return None

    def _study(self, turn: Turn) -> optuna.Study:
        sampler = seeded(self._sampler, int(turn.rng.integers(2**31)))
        study = optuna.create_study(sampler=sampler, direction="minimize")
        for number, trial in enumerate(turn.log):
            study.add_trial(self._finished(trial, turn.eps, _generation(sampler, number)))
        for candidate in turn.failed:
            study.add_trial(create_trial(state=TrialState.FAIL, params=self._params(candidate), distributions=self._axes))
        for candidate in turn.pending:
            study.add_trial(create_trial(state=TrialState.RUNNING, params=self._params(candidate), distributions=self._axes))
        return study

    def _finished(self, trial: Trial, eps: float, attrs: dict[str, int]) -> FrozenTrial:
        cost, params = trial.costs[self.problem.objective], self._params(trial.candidate)
        frozen = create_trial(state=TrialState.COMPLETE, value=cost, params=params, distributions=self._axes, system_attrs=attrs)
        frozen.set_constraint("divergence", float(trial.divergence or 0.0) - eps)
        for bound in self.problem.bounds:
            frozen.set_constraint(bound.metric, trial.costs[bound.metric] - bound.limit)
        return frozen

    def _params(self, candidate: Candidate) -> dict[str, int]:
        return dict(zip(self._axes, candidate, strict=True))


def tpe(problem: Problem, seed: int = 0) -> OptunaOptimizer:
    """Optuna's tree-structured Parzen estimator."""
    return OptunaOptimizer(problem, seed, sampler="tpe")


def nsga2(problem: Problem, seed: int = 0) -> OptunaOptimizer:
    """Optuna's NSGA-II with constraint dominance."""
    return OptunaOptimizer(problem, seed, sampler="nsga2")


def gp(problem: Problem, seed: int = 0) -> OptunaOptimizer:
    """Optuna's Gaussian process with constrained log expected improvement."""
    return OptunaOptimizer(problem, seed, sampler="gp")


def random(problem: Problem, seed: int = 0) -> OptunaOptimizer:
    """Optuna's random sampler."""
    return OptunaOptimizer(problem, seed, sampler="random")


def sampler_by_name(name: str) -> BaseSampler:
    """A short name's sampler, or `optuna.samplers.<name>()`.

    Raises:
        InputError: no such sampler, or one that cannot be made without arguments (pass the sampler itself then).
    """
    if name in SAMPLERS:
        return SAMPLERS[name]()
    classes = [other for other in optuna.samplers.__all__ if other.endswith("Sampler") and not other.startswith("Base")]
    if name not in classes:
        known = [*SAMPLERS, *classes]
        raise InputError(f"unknown Optuna sampler '{name}'{did_you_mean(name, known)}")
    try:
        sampler: BaseSampler = getattr(optuna.samplers, name)()
    except TypeError as error:
        raise InputError(f"Optuna sampler '{name}' cannot be made by name ({error}); pass the sampler itself") from None
    return sampler


def seeded(sampler: BaseSampler, seed: int) -> BaseSampler:
    """A copy of the sampler whose random numbers, and those of the samplers inside it, follow from `seed`."""
    fresh = copy.deepcopy(sampler)
    _reseed(fresh, LazyRandomState(seed), set())
    return fresh


def _reseed(part: object, source: LazyRandomState, seen: set[int]) -> None:
    of_optuna = isinstance(part, BaseSampler) or type(part).__module__.startswith("optuna.samplers")  # a subclass may be anybody's
    if id(part) in seen or not of_optuna:
        return
    seen.add(id(part))
    for name, value in vars(part).items():
        if isinstance(value, LazyRandomState):
            setattr(part, name, source)
        elif hasattr(value, "__dict__"):
            _reseed(value, source, seen)


def _generation(sampler: BaseSampler, number: int) -> dict[str, int]:
    """The generation a genetic sampler would have given to the trial with that number; nothing for other samplers."""
    if isinstance(sampler, BaseGASampler) and sampler.population_size:
        return {sampler._get_generation_key(): number // sampler.population_size}
    return {}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Optuna's notes on new studies and experimental arguments off the screen."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(level)
