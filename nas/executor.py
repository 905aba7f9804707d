"""Work that other processes do: what it is, what a worker keeps between its tasks, and who hands it out.

A task is a picklable callable that gets the worker's `Workplace`. Blocks and measured values travel through the block store and the evaluation
cache by content key; what comes back over the wire is small.
"""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

from nas.arguments import number, whole
from nas.errors import InputError, NasError
from nas.protocols import MeasuresBeside
from nas.space import Candidate
from nas.trial import Measurement

if TYPE_CHECKING:
    from nas.problem import Floats
    from nas.progress import Progress
    from nas.protocols import Evaluator, Space, Task

T = TypeVar("T")

MOST_WORKERS = 10_000
"""More than anybody has; each is a process with a copy of the teacher."""

PackedBlock = tuple[bytes, bytes]
"""A block as the store keeps it: manifest and weights."""

Blocks = Mapping[tuple[str, str], str]
"""(stage, choice) -> why the block is left out."""


class WorkerLost(NasError):
    """A task whose worker died or hung at every attempt."""


@dataclass(frozen=True, slots=True)
class Origin:
    """How a worker makes the space it works on.

    Attributes:
        space: what `--space` takes.
        options: of the space, such as its teacher.
        threads: compute threads of one worker.
        fingerprint: what the worker's space must have; empty accepts any.
        apart: whether the worker may stand on another machine, so that blocks travel with the tasks.
    """

    space: str
    options: Mapping[str, Any] = field(default_factory=dict)
    threads: int = 1
    fingerprint: Mapping[str, str] = field(default_factory=dict)
    apart: bool = False


class Workplace:
    """What a worker keeps between tasks: its space, and the evaluators once something is to be measured."""

    def __init__(self, origin: Origin) -> None:
        from nas.names import resolve_space

        self.apart = origin.apart
        self.space: Space = resolve_space(origin.space, **origin.options)
        _set_threads(origin.threads)
        if origin.fingerprint and dict(self.space.fingerprint()) != dict(origin.fingerprint):
            raise InputError(f"space '{origin.space}' comes out differently each time it is made; seed whatever is random in it, or use one worker")
        self._tasks: dict[frozenset[tuple[str, str]], Task] = {}

    def task(self, left_out: Blocks) -> "Task":
        """The prepared space without the blocks that are left out."""
        from nas.progress import Quiet

        names = frozenset(left_out)
        if names not in self._tasks:
            self._tasks[names] = prepare(self.space, Quiet(), left_out)
        return self._tasks[names]


class Executor(Protocol):
    """Hands tasks to workers. A context manager: leaving it ends the workers."""

    @property
    def apart(self) -> bool:
        """Whether workers may stand on other machines, with folders of their own."""
        ...

    @property
    def n_workers(self) -> int:
        """Tasks under way at a time."""
        ...

    @property
    def state(self) -> str:
        """What the workers are doing, in a few words."""
        ...

    def share(self, setup: "Callable[[Workplace], None]") -> None:
        """Has every worker do this before its next task, the ones started later too."""
        ...

    def submit(self, task: Callable[[Workplace], T]) -> "Future[T]":
        """The task's result to come; a task whose worker died or hung at every attempt raises `WorkerLost`."""
        ...


@runtime_checkable
class CalibratesByBlock(Protocol):
    """A space whose blocks can be calibrated one by one, by any process, into the store."""

    def missing_blocks(self) -> list[tuple[str, str]]:
        """(stage, choice) of the blocks that the store lacks, in the order in which they are best handed out."""
        ...

    def calibrate_block(self, stage: str, choice: str) -> None:
        """Calibrates one block into the store; features of the teacher are kept for the next."""
        ...

    def packed_blocks(self) -> dict[str, PackedBlock]:
        """Every block of the space that the store holds, by content key."""
        ...

    def receive_blocks(self, blocks: Mapping[str, PackedBlock]) -> None:
        """Stores blocks that another machine calibrated, each checked against its manifest."""
        ...

    def prepare(self, progress: "Progress", left_out: Blocks | None = None) -> "Task":
        """As in `Space`, without the blocks that are left out."""
        ...


@runtime_checkable
class KnowsMeasured(Protocol):
    """An evaluator that can tell what it need not measure again."""

    def known(self, candidate: Candidate, eps: Sequence[float] = (), complete: Sequence[Candidate] = ()) -> Measurement | None:
        """The measurement as the cache holds it; None if something is left to measure."""
        ...

    def values(self, candidate: Candidate) -> "Floats":
        """The divergence of each sample as far as the cache holds them."""
        ...

    def remember(self, candidate: Candidate, values: "Floats") -> None:
        """Keeps values that another process measured; any thread may call it."""
        ...


@dataclass(frozen=True, slots=True)
class CalibrateBlock:
    """A task: one block, from the teacher's features into the store."""

    stage: str
    choice: str

    def __call__(self, place: Workplace) -> dict[str, PackedBlock]:
        """The block, if it must travel."""
        assert isinstance(place.space, CalibratesByBlock)
        before = set(place.space.packed_blocks()) if place.apart else set()
        place.space.calibrate_block(self.stage, self.choice)
        return {key: block for key, block in place.space.packed_blocks().items() if key not in before} if place.apart else {}


@dataclass(frozen=True, slots=True)
class ReceiveBlocks:
    """A task: stores the blocks that other workers calibrated."""

    blocks: Mapping[str, PackedBlock]

    def __call__(self, place: Workplace) -> None:
        assert isinstance(place.space, CalibratesByBlock)
        place.space.receive_blocks(self.blocks)


@dataclass(frozen=True, slots=True)
class Measure:
    """A task: the divergence of one candidate, on measured or held-out samples, beside others and their values on all samples."""

    candidate: Candidate
    eps: tuple[float, ...] = ()
    heldout: bool = False
    left_out: Blocks = field(default_factory=dict)
    complete: "Mapping[Candidate, Floats]" = field(default_factory=dict)

    def __call__(self, place: Workplace) -> "tuple[Measurement, Floats | None]":
        """The measurement, and the value of each sample where the evaluator keeps them."""
        task = place.task(self.left_out)
        evaluator = task.verifier if self.heldout else task.evaluator
        assert evaluator is not None
        if isinstance(evaluator, KnowsMeasured):
            for candidate, values in self.complete.items():
                evaluator.remember(candidate, values)
        measured = measured_beside(evaluator, self.candidate, self.eps, tuple(self.complete))
        return measured, evaluator.values(self.candidate) if isinstance(evaluator, KnowsMeasured) else None


def measured_beside(evaluator: "Evaluator", candidate: Candidate, eps: Sequence[float], complete: Sequence[Candidate]) -> Measurement:
    """The measurement of one candidate, beside others where the evaluator can."""
    if complete and isinstance(evaluator, MeasuresBeside):
        return evaluator.measure_beside(candidate, eps, complete)
    return evaluator.measure([candidate], eps)[0]


def prepare(space: "Space", progress: "Progress", left_out: Blocks | None = None) -> "Task":
    """The space made ready to be searched, without the blocks that are left out."""
    if left_out and isinstance(space, CalibratesByBlock):
        return space.prepare(progress, left_out)
    return space.prepare(progress)


def calibrate_apart(space: "Space", executor: Executor, progress: "Progress") -> Blocks:
    """Has workers calibrate what the store lacks; the blocks that no worker survived, with the reason."""
    missing = space.missing_blocks() if isinstance(space, CalibratesByBlock) else []
    work = [(names, executor.submit(CalibrateBlock(*names))) for names in missing]
    left_out = {}
    for names, future in progress.track(work, "calibrating blocks") if work else ():
        try:
            packed = future.result()
        except WorkerLost as lost:
            left_out[names] = str(lost)
        else:
            if packed and isinstance(space, CalibratesByBlock):
                space.receive_blocks(packed)
    if executor.apart and isinstance(space, CalibratesByBlock):
        executor.share(ReceiveBlocks(space.packed_blocks()))
    return left_out


class RemoteEvaluator:
    """Measures on an executor's workers; what the cache of `local` holds is not sent out. A lost worker is a failed measurement."""

    def __init__(self, executor: Executor, local: "Evaluator", *, heldout: bool = False, left_out: Blocks | None = None) -> None:
        self._executor = executor
        self._local = local
        self._heldout = heldout
        self._left_out = dict(left_out or {})

    @property
    def width(self) -> int:
        """Measurements under way at a time."""
        return self._executor.n_workers

    @property
    def state(self) -> str:
        """What the workers are doing, in a few words."""
        return self._executor.state

    def submit(self, candidate: Candidate, eps: Sequence[float] = (), complete: Sequence[Candidate] = ()) -> "Future[Measurement]":
        """The measurement of one candidate, to come."""
        answer: Future[Measurement] = Future()
        beside: Mapping[Candidate, Floats] = {}
        if isinstance(self._local, KnowsMeasured):
            known = self._local.known(candidate, eps, complete)
            if known is not None:
                answer.set_result(known)
                return answer
            beside = {other: self._local.values(other) for other in complete}
        work = self._executor.submit(Measure(candidate, tuple(eps), self._heldout, self._left_out, beside))
        work.add_done_callback(lambda done: self._arrived(candidate, done, answer))
        return answer

    def measure(self, candidates: Sequence[Candidate], eps: Sequence[float] = ()) -> list[Measurement]:
        """One measurement a candidate, in order, side by side."""
        return [future.result() for future in [self.submit(candidate, eps) for candidate in candidates]]

    def _arrived(self, candidate: Candidate, done: "Future[tuple[Measurement, Floats | None]]", answer: "Future[Measurement]") -> None:
        """Passes a worker's answer on, and keeps its values where the next search looks for them."""
        if done.cancelled():
            answer.cancel()
            return
        try:
            measured, values = done.result()
            if values is not None and isinstance(self._local, KnowsMeasured):
                self._local.remember(candidate, values)
            answer.set_result(measured)
        except WorkerLost as lost:
            answer.set_result(Measurement(None, reason=str(lost)))
        except Exception as error:
            answer.set_exception(error)


def measured_apart(executor: Executor, task: "Task", left_out: Blocks) -> "tuple[Evaluator, Evaluator | None]":
    """The task's evaluator and verifier, their work done by an executor's workers."""
    evaluator = RemoteEvaluator(executor, task.evaluator, left_out=left_out)
    return evaluator, RemoteEvaluator(executor, task.verifier, heldout=True, left_out=left_out) if task.verifier else None


def check_workers(n_workers: int, timeout_s: float) -> None:
    """Raises unless there is at least one worker and a task may take some time."""
    whole("workers", n_workers, 1, MOST_WORKERS)
    if timeout_s != math.inf and not number("the time limit of a task", timeout_s) > 0:
        raise InputError(f"the time limit of a task must be above 0 seconds, got {timeout_s:g}")


def _set_threads(count: int) -> None:
    """Fixes the compute threads where there is something to compute with; a worker's environment says the same."""
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(count)
