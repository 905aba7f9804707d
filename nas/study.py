"""A search: propose, measure, record, until the trials are used up or nothing better is left; then verify the winners."""

import json
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from numbers import Integral
from typing import Any, Literal

from nas.arguments import instance, number, shown, whole
from nas.errors import ContractError, InputError
from nas.executor import measured_beside
from nas.problem import Problem
from nas.protocols import Evaluator, MeasuresApart, Optimizer, Predicts
from nas.record import Record
from nas.space import Candidate
from nas.trial import Measurement, Trial, incumbent, least_divergent
from nas.user_code import user_code

Stopped = Literal["trials", "proof", "exhausted", "interrupted"]

HELDOUT_TOLERANCE = 1.2  # a winner's held-out divergence may exceed eps by this factor


@dataclass(frozen=True, slots=True)
class Winner:
    """The cheapest feasible trial of an eps that held-out data confirms; the least divergent one if there is none.

    `rejected` are the cheaper feasible trials whose held-out divergence, beside them, was above 1.2 eps. `trial` is None when nothing was measured.
    """

    eps: float
    feasible: bool
    trial: Trial | None
    heldout: Measurement | None = None
    rejected: tuple[tuple[Trial, Measurement], ...] = ()


class Study:
    """One search over a problem, on a record that outlives the process.

    Args:
        problem: what is minimised under which bounds.
        optimizer: proposes candidates from the record alone, so that a killed search goes on as if nothing had happened.
        evaluator: measures divergence.
        record: where trials go; in memory by default.
        verifier: measures divergence on held-out samples; None accepts winners as measured.
    """

    def __init__(
        self, problem: Problem, optimizer: Optimizer, evaluator: Evaluator, record: Record | None = None, *, verifier: Evaluator | None = None
    ) -> None:
        self.problem = problem
        self.optimizer = optimizer
        self.record = record or Record()
        self._evaluator = evaluator
        self._verifier = verifier

    @property
    def trials(self) -> list[Trial]:
        """The record."""
        return self.record.trials()

    def run(self, n_trials: int, on_trial: Callable[[Sequence[Trial]], None] | None = None) -> Stopped:
        """Goes on until the record holds `n_trials`; says why it stopped. `on_trial` gets all trials after each new one."""
        trials = self.trials
        under_way: deque[tuple[Candidate, Future[Measurement]]] = deque()
        while len(trials) < n_trials:
            while len(under_way) < self._width and len(trials) + len(under_way) < n_trials:
                candidate, seen = self._next(trials, [c for c, _ in under_way])
                if candidate is None:
                    break
                under_way.append((candidate, self._start(candidate, seen)))
            if not under_way:
                # the teacher is known and need not be measured
                left = self.problem.space.n_candidates - len({self.problem.space.teacher, *(t.candidate for t in trials)})
                return "exhausted" if left == 0 else "proof"
            candidate, future = under_way.popleft()
            predicted = self.optimizer.predict(trials, [candidate])[0] if trials and isinstance(self.optimizer, Predicts) else None
            trial = self._measured(candidate, future.result(), trials)
            if predicted is not None:
                trial = replace(trial, attrs={**trial.attrs, "predicted": [float(value) for value in predicted]})
            self.record.add(trial)
            trials.append(trial)
            if on_trial is not None:
                on_trial(trials)
        return "trials"

    @property
    def workers(self) -> str:
        """What the workers are doing, in a few words; empty where this process measures itself."""
        return self._evaluator.state if isinstance(self._evaluator, MeasuresApart) else ""

    @property
    def _width(self) -> int:
        return self._evaluator.width if isinstance(self._evaluator, MeasuresApart) else 1

    def _next(self, trials: Sequence[Trial], under_way: Sequence[Candidate]) -> tuple[Candidate | None, Sequence[Trial]]:
        """Proposal number k and the trials it sees: the results 1..k-w, whoever finished first.

        More only where the optimizer has nothing to propose on these.
        """
        started = time.process_time()
        known, kind = [t.candidate for t in trials], type(self.optimizer)
        for seen in range(max(0, len(trials) + len(under_way) - self._width + 1), len(trials) + 1):
            pending = [*known[seen:], *under_way]
            with user_code(f"optimizer {kind.__name__}") if not kind.__module__.startswith("nas.") else nullcontext():
                proposed = self.optimizer.propose(trials[:seen], pending, 1)
            if not isinstance(proposed, Sequence):
                raise ContractError(f"optimizer {kind.__name__} must propose a list of candidates, empty when it is done, got {shown(proposed)}")
            if proposed:
                break
        self.record.set_fact("seconds_proposing", self.seconds_proposing + time.process_time() - started)
        return self._checked(proposed[0], [*known, *under_way]) if proposed else None, trials[:seen]

    def _start(self, candidate: Candidate, seen: Sequence[Trial]) -> "Future[Measurement]":
        """The measurement of a candidate, under way elsewhere or done here, beside those of the trials it was proposed on that are complete."""
        complete = [trial.candidate for trial in seen if trial.divergence is not None and not trial.partial]
        if isinstance(self._evaluator, MeasuresApart):
            return self._evaluator.submit(candidate, self.problem.eps, complete)
        done: Future[Measurement] = Future()
        done.set_result(measured_beside(self._evaluator, candidate, self.problem.eps, complete))
        return done

    def incumbent(self, eps: float, trials: Sequence[Trial] | None = None) -> Trial | None:
        """The cheapest trial that satisfies the eps and all known bounds, not yet verified."""
        return incumbent(self._within_bounds(self.trials if trials is None else trials), eps, self.problem.objective)

    def winner(self, eps: float) -> Winner:
        """Verifies feasible trials from the cheapest on until one holds; verdicts are recorded, so that nothing is measured twice."""
        trials = self._within_bounds(self.trials)
        feasible = sorted((t for t in trials if t.divergence is not None and t.divergence <= eps), key=lambda t: (t.costs[self.problem.objective], t.number))
        rejected: list[tuple[Trial, Measurement]] = []
        for trial in feasible:
            heldout = self._verified(trial.candidate)
            if heldout is None or (heldout.divergence is not None and heldout.divergence <= HELDOUT_TOLERANCE * eps):
                return Winner(eps, True, trial, heldout, tuple(rejected))
            rejected.append((trial, heldout))
        if not trials and self.problem.space.n_candidates == 1:
            teacher = Trial(0, self.problem.space.teacher, self.problem.costs.of(self.problem.space.teacher), 0.0)
            return Winner(eps, True, teacher)
        return Winner(eps, False, least_divergent(self.trials), None, tuple(rejected))

    @property
    def n_measured(self) -> int:
        """Measurements that no cache served, verification included."""
        return sum(not t.attrs.get("cached") for t in self.trials) + sum(not v["cached"] for v in self._verdicts().values())

    @property
    def seconds_measuring(self) -> float:
        """Seconds spent measuring, all sessions of this run together."""
        return sum(t.seconds for t in self.trials) + sum(float(v["seconds"]) for v in self._verdicts().values())

    @property
    def seconds_proposing(self) -> float:
        """CPU seconds the optimizer took, all sessions of this run together."""
        return float(self.record.fact("seconds_proposing", 0.0))

    def _measured(self, candidate: Candidate, measured: Measurement, trials: Sequence[Trial]) -> Trial:
        costs, measured = self.problem.costs.of(candidate), _plain(measured)
        if not measured.complete and self._may_win(measured, costs, trials):
            measured = _plain(self._evaluator.measure([candidate])[0])
        flags = {"cached": measured.cached, "partial": not measured.complete}
        return Trial(
            len(trials), candidate, costs, measured.divergence, measured.stderr, measured.n_samples, measured.seconds,
            "failed" if measured.divergence is None else "complete", measured.reason,
            {**measured.attrs, **{name: True for name, holds in flags.items() if holds}},
        )  # fmt: skip

    def _may_win(self, measured: Measurement, costs: dict[str, float], trials: Sequence[Trial]) -> bool:
        """Whether the candidate would become the incumbent of some eps: then its verdict must rest on all samples."""
        for eps in self.problem.eps:
            best = self.incumbent(eps, trials)
            cheaper = best is None or costs[self.problem.objective] < best.costs[self.problem.objective]
            if cheaper and measured.divergence is not None and measured.divergence <= eps:
                return True
        return False

    def _verified(self, candidate: Candidate) -> Measurement | None:
        if self._verifier is None:
            return None
        name = json.dumps(candidate)
        verdicts = self._verdicts()
        if name not in verdicts:
            verdicts[name] = asdict(_plain(self._verifier.measure([candidate])[0])) | {"attrs": {}}
            self.record.set_fact("verdicts", verdicts)
        return Measurement(**verdicts[name])

    def _verdicts(self) -> dict[str, dict[str, Any]]:
        """Candidate (as JSON) -> its measurement on held-out samples."""
        known: dict[str, dict[str, Any]] = self.record.fact("verdicts", {})
        return known

    def _within_bounds(self, trials: Sequence[Trial]) -> list[Trial]:
        bounds = self.problem.bounds
        return [t for t in trials if all(t.costs[bound.metric] <= bound.limit * (1 + 1e-12) for bound in bounds)]

    def _checked(self, candidate: Candidate, known: Sequence[Candidate]) -> Candidate:
        who = f"optimizer {type(self.optimizer).__name__}"
        if not isinstance(candidate, Sequence) or not all(isinstance(k, Integral) for k in candidate):
            raise ContractError(f"{who} proposed {shown(candidate)}; a candidate is a tuple of whole numbers, one a stage")
        try:
            candidate = self.problem.space.check(candidate)
        except InputError as error:
            raise ContractError(f"{who} proposed {candidate}: {error}; nas.optimizers.contract.check_optimizer tries it on small problems") from None
        if candidate in known:
            raise ContractError(f"{who} proposed {candidate} again; a told candidate must not be repeated")
        if candidate != self.problem.space.teacher and (broken := self.problem.broken(candidate)):  # the teacher may always be measured
            raise ContractError(f"{who} proposed {candidate}: {broken}; problem.allowed(candidates) says which may be proposed")
        return candidate


def _plain(measured: Measurement) -> Measurement:
    """The measurement in Python's own numbers, which a record can hold; a divergence that is not finite is none, for that reason.

    Raises:
        ContractError: it is no measurement, or its numbers are none.
    """
    try:
        instance("it", measured, Measurement, "nas.trial.Measurement(0.01) is one")
        divergence, stderr, reason = measured.divergence, measured.stderr, measured.reason
        if divergence is not None and not math.isfinite(divergence):
            divergence, reason = None, f"divergence is not finite ({divergence})"
        return replace(
            measured,
            divergence=None if divergence is None else number("divergence", divergence),
            stderr=0.0 if divergence is None else number("stderr", stderr, 0),
            n_samples=whole("n_samples", measured.n_samples),
            seconds=number("seconds", measured.seconds, 0),
            reason=reason,
        )
    except InputError as error:
        raise ContractError(f"what the evaluator measured cannot be recorded: {error}") from None
