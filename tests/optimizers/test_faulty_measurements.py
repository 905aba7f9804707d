"""Measurements that are not finite, all alike, or all failed reach no optimizer's model and no user as a traceback."""

import math
from collections.abc import Callable, Sequence

import pytest

from nas.names import OPTIMIZERS, resolve_optimizer
from nas.optimizers.contract import make_problem
from nas.space import Candidate
from nas.study import Study
from nas.trial import Measurement

MODEL_FREE = ("additive", "evolution", "local", "optuna:nsga2", "optuna:random", "optuna:tpe", "random", "threshold")
WITH_MODEL = tuple(name for name in OPTIMIZERS.names() if name not in (*MODEL_FREE, "optuna"))

Divergence = Callable[[int, Candidate], float | None]


def sound(candidate: Candidate) -> float:
    return sum(0.1 * k * (1 + s % 3) for s, k in enumerate(candidate))


FAULTS: dict[str, Divergence] = {
    "one in five not finite": lambda n, c: (math.nan, math.inf, -math.inf, None)[n // 5 % 4] if n % 5 == 0 else sound(c),
    "all failed": lambda n, c: None,
    "all NaN": lambda n, c: math.nan,
    "constant": lambda n, c: 0.3,
    "all zero": lambda n, c: 0.0,
    "huge and tiny": lambda n, c: (1e300, 1e-300)[n % 2],
    "negative": lambda n, c: -1.0,
}


class Faulty:
    """Measures as told by the number of the call."""

    def __init__(self, divergence: Divergence) -> None:
        self._divergence, self._calls = divergence, 0

    def measure(self, candidates: Sequence[Candidate], eps: Sequence[float] = ()) -> list[Measurement]:
        found = []
        for candidate in candidates:
            found.append(Measurement(self._divergence(self._calls, candidate), 0.0, 8))
            self._calls += 1
        return found


def survives(name: str, fault: str, trials: int) -> None:
    problem = make_problem((3, 3, 2))
    study = Study(problem, resolve_optimizer(name, problem, 0), Faulty(FAULTS[fault]))
    stopped = study.run(trials)
    found = study.trials
    assert stopped in ("trials", "exhausted", "proof")
    assert len({trial.candidate for trial in found}) == len(found) <= 18
    assert all(trial.state == "complete" or (trial.divergence is None and trial.reason is not None) for trial in found)
    assert all(trial.divergence is None or math.isfinite(trial.divergence) for trial in found)
    winner = study.winner(0.5)
    assert winner.trial is None or winner.trial.divergence is None or math.isfinite(winner.trial.divergence)
    if fault in ("all failed", "all NaN"):
        assert not winner.feasible


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", MODEL_FREE)
def test_an_optimizer_without_a_model_survives(name: str, fault: str) -> None:
    survives(name, fault, 40)


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", WITH_MODEL)
def test_an_optimizer_with_a_model_survives(name: str, fault: str) -> None:
    survives(name, fault, 12)


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS.names() if name != "optuna"])
def test_a_space_with_nothing_but_the_teacher_is_exhausted_at_once(name: str) -> None:
    problem = make_problem((1, 1))
    study = Study(problem, resolve_optimizer(name, problem, 0), Faulty(FAULTS["constant"]))
    study.run(5)
    assert len(study.trials) <= 1
