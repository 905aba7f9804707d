"""Every optimizer keeps the contract; an optimizer that breaks it is found out."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from nas.errors import ContractError, NasError
from nas.optimizers import contract, optuna_samplers
from nas.optimizers.additive import AdditiveSearch
from nas.optimizers.contract import CHECKS, Check, check_optimizer
from nas.optimizers.eps_gp import EpsGP
from nas.optimizers.evolution import RegularisedEvolution
from nas.optimizers.local import LocalSearch
from nas.optimizers.paper_gp import PaperGP
from nas.optimizers.random_search import RandomSearch
from nas.optimizers.threshold import ThresholdSearch
from nas.problem import Problem
from nas.protocols import OptimizerFactory
from nas.space import Candidate
from nas.trial import Trial

CHEAP: dict[str, OptimizerFactory] = {
    "random": RandomSearch,
    "local": LocalSearch,
    "evolution": functools.partial(RegularisedEvolution, population=5, tournament=2),
    "additive": AdditiveSearch,
    "threshold": ThresholdSearch,
    "optuna:tpe": optuna_samplers.tpe,
    "optuna:nsga2": optuna_samplers.nsga2,
    "optuna:random": optuna_samplers.random,
}
MODELS: dict[str, OptimizerFactory] = {
    "eps_gp": EpsGP,
    "optuna:gp": functools.partial(optuna_samplers.OptunaOptimizer, sampler="gp", retries=0),
}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", CHEAP)
def test_optimizers_without_models_keep_the_contract(name: str, check: Check) -> None:
    check(CHEAP[name])


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", MODELS)
def test_optimizers_with_models_keep_the_contract(name: str, check: Check) -> None:
    check(MODELS[name])


def test_the_papers_recipe_is_a_pure_function() -> None:
    contract.is_a_pure_function(functools.partial(PaperGP, n_initial=9))


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_papers_recipe_keeps_the_contract(check: Check) -> None:
    check(functools.partial(PaperGP, n_initial=4))


class Broken:
    """Proposes what it was made with, whatever the log says."""

    def __init__(self, *proposals: Any) -> None:
        self._proposals = list(proposals)

    def propose(self, trials: Sequence[Trial], pending: Sequence[Candidate] = (), n: int = 1) -> list[Candidate]:
        del trials, pending, n
        return self._proposals


@pytest.mark.parametrize(
    ("proposals", "complaint"),
    [
        ([(0, 0, 0, 0, 9)], "choices 0..2, got 9"),
        ([(0, 0)], "has 5 stages, got 2"),
        ([(1, 0, 0, 0, 0)], "was told"),
        ([[1, 0, 0, 0, 0]], "tuple of ints"),
        ([(1, 0, 0, 0, 0), (2, 0, 0, 0, 0)], "at most 1"),
    ],
)
def test_a_broken_optimizer_is_found_out(proposals: list[Any], complaint: str) -> None:
    with pytest.raises(NasError, match=complaint):
        check_optimizer(lambda problem, seed=0: Broken(*proposals))


class NoPropose:
    def __init__(self, problem: Problem, seed: int = 0) -> None:
        pass


class TakesTrialsOnly(NoPropose):
    def propose(self, trials: Sequence[Trial]) -> list[Candidate]:
        return [(0,) * len(trials)]


class Raises(NoPropose):
    def propose(self, trials: Sequence[Trial], pending: Sequence[Candidate] = (), n: int = 1) -> list[Candidate]:
        return [trials[0].candidate]


class Gives(NoPropose):
    given: Any = None

    def propose(self, trials: Sequence[Trial], pending: Sequence[Candidate] = (), n: int = 1) -> Any:
        return self.given


def gives(value: Any) -> type[Gives]:
    return type("Gives", (Gives,), {"given": value})


@pytest.mark.parametrize(
    ("factory", "complaint"),
    [
        (lambda problem: NoPropose(problem), r"must take \(problem, seed=0\): got an unexpected keyword argument 'seed'"),
        (NoPropose(None), r"must take \(problem, seed=0\).*is not a callable object"),  # type: ignore[arg-type]  # no problem is looked at
        (NoPropose, "NoPropose gives a NoPropose, which has no method 'propose"),
        (TakesTrialsOnly, r"'propose' must take \(trials, pending=\(\), n=1\)"),
        (Raises, r"Raises breaks the rule 'stays_inside_the_space': optimizer Raises: IndexError: .*test_contract.py:\d+\)"),
        (gives(None), r"must return a list of candidates, empty when it is done, got None \(NoneType\)"),
        (gives(np.zeros((1, 5), int)), r"must return a list of candidates.*\(ndarray\)"),
        (gives([3]), r"a candidate must be a tuple of ints, got 3 \(int\)"),
        (gives([(0, 0, 0, 0, 9)]), r"proposed \(0, 0, 0, 0, 9\): stage 's4' has choices 0..2, got 9; once mended, .*contract.stays_inside_the_space\(Gives\)$"),
    ],
)
def test_whatever_an_optimizer_does_wrong_is_one_line_of_ours(factory: Any, complaint: str) -> None:
    with pytest.raises(NasError, match=complaint) as caught:
        check_optimizer(factory)
    assert "\n" not in str(caught.value)


def test_the_rule_that_is_broken_is_the_one_that_is_named() -> None:
    with pytest.raises(ContractError, match=r"breaks the rule 'repeats_nothing': proposed \(0, 0, 0, 0, 1\), which was told"):
        check_optimizer(gives([(0, 0, 0, 0, 1)]))

    class IgnoresBounds(NoPropose):
        def __init__(self, problem: Problem, seed: int = 0) -> None:
            self._inner = RandomSearch(dataclasses.replace(problem, bounds=()), seed)

        def propose(self, trials: Sequence[Trial], pending: Sequence[Candidate] = (), n: int = 1) -> list[Candidate]:
            return self._inner.propose(trials, pending, n)

    with pytest.raises(ContractError, match=r"breaks the rule 'respects_bounds_and_rules': proposed .*: its macs is \d+, the bound is macs<=[\d.]+; problem"):
        check_optimizer(IgnoresBounds)


def test_an_optimizer_that_remembers_is_found_out() -> None:
    class Remembers:
        def __init__(self, problem: Problem, seed: int = 0) -> None:
            self._inner = RandomSearch(problem, seed)
            self._calls = 0

        def propose(self, trials: Sequence[Trial], pending: Sequence[Candidate] = (), n: int = 1) -> list[Candidate]:
            self._calls += 1
            return self._inner.propose(trials, [*pending, (2, 2, 1, 2)] if self._calls > 13 else pending, n)

    with pytest.raises(ContractError, match="fresh one"):
        contract.is_a_pure_function(Remembers)


def test_an_optimizer_that_stops_too_early_is_found_out() -> None:
    with pytest.raises(ContractError, match="was to be had"):
        contract.exhausts_a_small_space(lambda problem, seed=0: Broken())
