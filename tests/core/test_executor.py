"""A search on several workers: its log does not depend on who finishes first, and lost workers cost one trial each."""

import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch

import nas
from nas.cli.options import set_threads
from nas.crew import Crew, usable_cores
from nas.errors import InputError
from nas.executor import Measure, RemoteEvaluator, WorkerLost, calibrate_apart
from nas.names import resolve_space
from nas.problem import Problem
from nas.progress import Quiet
from nas.record import Record
from nas.space import Candidate
from nas.study import Study
from nas.trial import Measurement, Trial
from tests.core.test_study import COSTS, SPACE, InOrder, Quadratic

TOY = f"{Path(__file__).parent / 'toy_space.py'}:make_space"


class Watched(InOrder):
    """Proposes in order; notes how many results and which pending candidates each proposal saw."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def propose(self, trials: Sequence[Trial], pending: Sequence[Candidate] = (), n: int = 1) -> list[Candidate]:
        self.seen.append((len(trials), len(pending)))
        return super().propose(trials, pending, n)


class Adaptive(InOrder):
    """Prefers candidates near the least divergent trial seen, so that what it has seen shows in what it proposes."""

    def propose(self, trials: Sequence[Trial], pending: Sequence[Candidate] = (), n: int = 1) -> list[Candidate]:
        left = super().propose(trials, pending, 100)
        best = max(trials, key=lambda t: t.divergence or 0.0).candidate if trials else (2, 0)
        return sorted(left, key=lambda c: sum(abs(a - b) for a, b in zip(c, best, strict=True)))[:n]


class Apart(Quadratic):
    """Answers after a random while, in whatever order."""

    def __init__(self, width: int, seed: int, lost: tuple[Candidate, ...] = ()) -> None:
        super().__init__()
        self.width, self.state, self._delays, self._lost = width, f"{width} of {width} workers busy", random.Random(seed), lost
        self.beside: dict[Candidate, list[Candidate]] = {}

    def submit(self, candidate: Candidate, eps: Sequence[float] = (), complete: Sequence[Candidate] = ()) -> "Future[Measurement]":
        self.beside[candidate] = list(complete)
        future: Future[Measurement] = Future()
        result = Measurement(None, reason="no worker survived it") if candidate in self._lost else self.measure([candidate], eps)[0]
        threading.Timer(self._delays.uniform(0, 0.02), future.set_result, [result]).start()
        return future


def log(optimizer: Any, evaluator: Apart, n_trials: int = 8, record: Record | None = None) -> list[Candidate]:
    study = Study(Problem(SPACE, COSTS, (0.02,)), optimizer, evaluator, record)
    study.run(n_trials)
    return [trial.candidate for trial in study.trials]


@pytest.mark.parametrize("width", [1, 2, 3])
def test_proposal_k_sees_exactly_the_results_up_to_k_minus_w(width: int) -> None:
    optimizer = Watched()
    log(optimizer, Apart(width, seed=0), n_trials=7)
    assert optimizer.seen == [(max(0, k - width), min(k - 1, width - 1)) for k in range(1, 8)]


def test_the_log_does_not_depend_on_speed() -> None:
    logs = [log(Adaptive(), Apart(3, seed)) for seed in range(5)]
    assert all(other == logs[0] for other in logs)
    assert sorted(logs[0]) == sorted(tuple(row) for row in SPACE.enumerate().tolist()[1:])


def test_a_search_with_workers_that_was_stopped_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    whole = log(Adaptive(), Apart(3, 0))
    for stop in range(1, 8):
        with Record(tmp_path / f"{stop}.db") as record:
            log(Adaptive(), Apart(3, 1), stop, record)
            assert log(Adaptive(), Apart(3, 2), 8, record) == whole


def test_a_measurement_is_compared_with_the_complete_trials_that_its_proposal_saw() -> None:
    evaluator = Apart(2, 0, lost=((0, 2),))
    candidates = log(InOrder(), evaluator, 5)
    assert candidates[1] == (0, 2)
    seen = [[candidates[i] for i in range(max(0, k - 1)) if i != 1] for k in range(5)]
    assert [evaluator.beside[candidate] for candidate in candidates] == seen


def test_a_lost_worker_is_a_failed_trial_and_the_search_goes_on() -> None:
    study = Study(Problem(SPACE, COSTS, (0.02,)), InOrder(), Apart(2, 0, lost=((1, 1),)))
    assert study.run(8) == "trials"
    failed = [trial for trial in study.trials if trial.state == "failed"]
    assert [(trial.candidate, trial.reason) for trial in failed] == [((1, 1), "no worker survived it")]


class Here:
    """An executor whose tasks all lose their worker, or are done at once by `do`."""

    def __init__(self, do: Callable[[Any], Any] | None = None) -> None:
        self.n_workers, self.apart, self.state, self._do = 2, False, "idle", do
        self.tasks: list[Any] = []

    def share(self, setup: Any) -> None:
        pass

    def submit(self, task: Any) -> "Future[Any]":
        self.tasks.append(task)
        future: Future[Any] = Future()
        if self._do is None:
            future.set_exception(WorkerLost("no worker survived it in 3 attempts: killed by signal 9"))
        else:
            future.set_result(self._do(task))
        return future


def test_a_lost_worker_is_a_measurement_without_a_value() -> None:
    (measured,) = RemoteEvaluator(Here(), Quadratic()).measure([(0, 1)])
    assert measured.divergence is None
    assert "killed by signal 9" in measured.reason


def test_a_block_that_no_worker_survives_is_left_out_with_its_reason(home: Path) -> None:
    space = resolve_space(TOY)
    left_out = calibrate_apart(space, Here(), Quiet())
    assert len(left_out) == 6
    notes: list[str] = []

    class Listener(Quiet):
        def note(self, text: str) -> None:
            notes.append(text)

    task = space.prepare(Listener(), dict(list(left_out.items())[1:]))  # type: ignore[call-arg]
    assert task.space.sizes == (2, 1, 1)
    assert len([note for note in notes if "is left out: no worker survived it" in note]) == 5


def test_what_the_cache_holds_is_not_sent_to_workers(home: Path) -> None:
    task = resolve_space(TOY).prepare(Quiet())
    (measured,) = task.evaluator.measure([(1, 1, 1)], (0.5,))
    executor = Here(lambda _: (measured, None))
    remote = RemoteEvaluator(executor, task.evaluator)
    (known,) = remote.measure([(1, 1, 1)], (0.5,))
    assert (known.divergence, known.n_samples, known.cached) == (measured.divergence, measured.n_samples, True)
    assert executor.tasks == []
    remote.measure([(2, 1, 1)])
    assert executor.tasks == [Measure((2, 1, 1))]


def test_two_workers_calibrate_and_measure_what_one_process_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    for workers in (1, 2):
        monkeypatch.setenv("NAS_HOME", str(tmp_path / str(workers)))
        result = nas.search(TOY, 0.05, optimizer="random", trials=6, workdir=None, workers=Crew(workers, threads=workers))
        found[workers] = result.study.trials, result.table["stages"], result.winners[0].heldout
    for alone, shared in zip(found[1][0], found[2][0], strict=True):
        assert alone.candidate == shared.candidate
        if alone.partial or shared.partial:  # estimates lean on the trials that the proposal saw
            assert alone.divergence == pytest.approx(shared.divergence, abs=4 * (alone.noise + shared.noise))
        else:
            assert alone.divergence == shared.divergence
    assert found[1][1] == found[2][1]
    assert found[1][2] is not None
    assert found[2][2] is not None
    assert found[1][2].divergence == found[2][2].divergence


def test_a_space_object_cannot_be_made_by_workers(home: Path) -> None:
    with pytest.raises(InputError, match="several workers need a space they can make themselves"):
        nas.search(resolve_space(TOY), 0.05, workers=2)


def test_threads_are_divided_among_workers() -> None:
    assert [Crew(workers, threads=8).threads_each for workers in (1, 2, 3, 8, 20)] == [8, 4, 2, 1, 1]


@pytest.mark.parametrize(
    ("given", "asked", "count"), [("3", None, 3), ("3,1", None, 3), ("3", 2, 2), ("", None, usable_cores()), ("many", None, usable_cores())]
)
def test_compute_threads_are_those_asked_for_then_those_of_the_environment(given: str, asked: int | None, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    before = torch.get_num_threads()
    try:
        set_threads(asked)
        assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(before)


def test_workers_get_the_cores_that_this_process_may_use() -> None:
    assert Crew(1).threads_each == usable_cores() >= 1
    assert Crew(4, "ray", threads=3).threads_each == 3
    assert Crew(4, "ray").threads_each == 1


def test_wrong_crews_are_refused() -> None:
    with pytest.raises(InputError, match="did you mean 'local'"):
        Crew(executor="locl")
    with pytest.raises(InputError, match="above 0 seconds"):
        Crew(timeout_s=0)
    with pytest.raises(InputError, match="give --executor ray"):
        Crew(address="auto")
