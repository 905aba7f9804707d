"""What others implement: spaces, optimizers, evaluators (and recipes, in `nas.space`)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from nas.problem import Bound, CostTable, Floats, Problem
from nas.space import Candidate, SearchSpace
from nas.trial import Measurement, Trial

if TYPE_CHECKING:
    from concurrent.futures import Future

    import networkx as nx

    from nas.progress import Progress


class Optimizer(Protocol):
    """Proposes what to measure next: a pure function of the problem, the seed, the trials and what is pending."""

    def propose(self, trials: Sequence[Trial], pending: Sequence[Candidate] = (), n: int = 1) -> list[Candidate]:
        """At most `n` candidates neither told nor pending; empty once nothing is left worth measuring."""
        ...


@runtime_checkable
class StatesWhatIsLeft(Protocol):
    """An optimizer that can say how likely it is that something better was left, and which choices it leaves for last."""

    def pruned(self, trials: Sequence[Trial]) -> Mapping[str, Sequence[str]]:
        """Stage -> choices that another choice of the stage dominates."""
        ...

    def statement(self, trials: Sequence[Trial]) -> Mapping[float, object]:
        """A statement for each eps, whose text is for people."""
        ...


@runtime_checkable
class Predicts(Protocol):
    """An optimizer with a model of the divergence, which reports and explanations ask."""

    def predict(self, trials: Sequence[Trial], candidates: Sequence[Candidate]) -> Floats:
        """5 %, 50 % and 95 % quantiles of the divergence of candidates not yet measured, `(n, 3)`."""
        ...

    def cost_at(self, trials: Sequence[Trial], eps: float) -> Floats:
        """Draws of the objective of the cheapest candidate that is feasible at any eps, `(D,)`."""
        ...


class OptimizerFactory(Protocol):
    """What the registry of optimizers holds: a class or function that makes an optimizer for a problem."""

    def __call__(self, problem: Problem, seed: int = 0) -> Optimizer: ...


class Evaluator(Protocol):
    """Measures the divergence of candidates from the teacher."""

    def measure(self, candidates: Sequence[Candidate], eps: Sequence[float] = ()) -> list[Measurement]:
        """One measurement a candidate, in order; may stop early on a candidate once its verdict at every eps is clear."""
        ...


@runtime_checkable
class MeasuresBeside(Protocol):
    """An evaluator that needs fewer samples of a candidate beside others that were measured on all of them."""

    def measure_beside(self, candidate: Candidate, eps: Sequence[float], complete: Sequence[Candidate]) -> Measurement:
        """Like `measure`; depends on the values of the complete candidates, not on where they come from."""
        ...


@runtime_checkable
class MeasuresApart(Protocol):
    """An evaluator whose measurements run elsewhere, `width` at a time."""

    @property
    def width(self) -> int:
        """Measurements under way at a time."""
        ...

    @property
    def state(self) -> str:
        """What those who measure are doing, in a few words."""
        ...

    def submit(self, candidate: Candidate, eps: Sequence[float] = (), complete: Sequence[Candidate] = ()) -> "Future[Measurement]":
        """The measurement of one candidate, beside others that were measured on all samples, to come."""
        ...


@runtime_checkable
class HasMoreCosts(Protocol):
    """A space with additive costs that are not in its table unless they are asked for, such as `latency_ms`."""

    @property
    def more_costs(self) -> tuple[str, ...]:
        """Their names."""
        ...

    def cost(self, metric: str) -> tuple[Floats, float]:
        """One of them for every stage and choice, `(S, K)`, and for what is fixed."""
        ...


@runtime_checkable
class HasLatency(Protocol):
    """A space whose blocks can be timed on its device."""

    def measure_latency(self, progress: "Progress", batch: int = 1) -> dict[str, Any]:
        """Times every block, keeps the table for `latency_ms`, and returns it with its error on whole candidates, as JSON values."""
        ...


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a search on a space will take, from a short probe.

    Attributes:
        blocks: surrogate blocks in the library; `missing` of them are to be calibrated.
        samples: set name -> number of samples.
        calibrate_s: seconds to calibrate what is missing if no block stops early.
        measure_s: seconds to measure one candidate of the teacher's size on all samples.
        weights_mb: teacher and all blocks in memory.
        features_mb: what the teacher's stages read and wrote on the fit samples, for the stages with missing blocks.
        activation_mb: intermediate values of a forward pass on one chunk, at most.
        disk_mb: blocks that will be stored and one exported model, at most.
    """

    blocks: int
    missing: int
    samples: Mapping[str, int]
    calibrate_s: float
    measure_s: float
    weights_mb: float
    features_mb: float
    activation_mb: float
    disk_mb: float


@runtime_checkable
class CanForecast(Protocol):
    """A space that can say what a search on it will take."""

    def forecast(self) -> Forecast:
        """The forecast, as the block store stands."""
        ...


@dataclass(frozen=True)
class Task:
    """A space made ready to be searched: calibrated, counted, measurable.

    `expected_losses` `(S, K)` is the divergence that each block is expected to cost alone, as `calibration_errors` 0 for the teacher and NaN where unknown.
    `scale` is the variance of the teacher's output on the measured samples: divergence / scale is relative; None for divergences in another unit
    than its square. `divergence` says in a few words what L is. `verifier` measures on
    held-out data; `heldout_loss` is the task's own loss there; `export` writes a candidate's model into a
    folder. Each is None where the space has no such thing. `notes` are lines that every search on it should print. `flow` is the data flow
    between steps, for drawings: one node a step (stages by their names), edges with the `values` that travel. `legend` says how to read the names of blocks;
    `loading` are Python lines that load an exported model; `references` are designs to compare with, name -> stage -> choice.
    `blocks` are the content keys of its calibrated blocks, by `stage/choice`; `curves` their held-out errors by steps of calibration, `by_level` by ranges
    of the noise level, least first.
    """

    space: SearchSpace
    costs: CostTable
    evaluator: Evaluator
    calibration_errors: Floats | None = None
    expected_losses: Floats | None = None
    scale: float | None = None
    verifier: Evaluator | None = None
    heldout_loss: Callable[[Candidate], float] | None = None
    export: Callable[[Candidate, Path], None] | None = None
    notes: tuple[str, ...] = field(default=())
    blocks: Mapping[str, str] = field(default_factory=dict)
    curves: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)
    by_level: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    flow: "nx.DiGraph[str] | None" = None
    legend: str = ""
    loading: str = ""
    divergence: str = ""
    references: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def problem(self, eps: Sequence[float], objective: str = "params", bounds: Sequence[Bound] = ()) -> Problem:
        """The problem of the cheapest candidate within each eps and the bounds, with all that is known of the blocks."""
        return Problem(self.space, self.costs, tuple(eps), objective, tuple(bounds), self.calibration_errors, self.expected_losses)


class Space(Protocol):
    """Something to search: what the registry's factories and `make_space` functions return."""

    @property
    def space(self) -> SearchSpace:
        """Stages and choices."""
        ...

    def fingerprint(self) -> dict[str, str]:
        """Everything besides the space's name that decides results (teacher, library, data), as short hashes."""
        ...

    def costs(self) -> CostTable:
        """Exact costs of every choice, counted without calibrating anything."""
        ...

    def prepare(self, progress: "Progress") -> Task:
        """Calibrates what is missing, counts costs, and opens the evaluators."""
        ...
