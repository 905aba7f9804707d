"""Synthetic landscapes like the measured ones (`nas.spaces.landscape` has the formula), with costs and free calibration errors.

Like in measured spaces, stages cheap in parameters are the sensitive ones, and calibration errors order the choices of a stage well but not across stages.

Symbols: `S` stages, `K` choices, `loss (S, K)` divergence parts of single swaps, `error (S, K)` calibration errors.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, final

import numpy as np

from nas import arguments
from nas.errors import InputError
from nas.problem import CostTable, Floats, Problem
from nas.progress import Progress
from nas.protocols import Task
from nas.space import Candidate, SearchSpace
from nas.spaces.landscape import ONE_GROUP, Landscape, grouped, make_terms, merged_front, middle_of
from nas.spaces.table import enumerated_optimum
from nas.trial import Measurement

SENSITIVITY, DEVIATION = 0.8, 0.3
"""Spreads of log losses between stages and between the blocks of a stage, unless others are asked for."""


@final
class SyntheticSpace:
    """A synthetic landscape to search; `settings` are all that decides it."""

    def __init__(
        self, name: str, landscape: Landscape, costs: CostTable, calibration_errors: Floats | None, settings: dict[str, object], expected: Floats | None = None
    ) -> None:
        self._name = name
        self.landscape = landscape
        self._costs = costs
        self._calibration_errors = calibration_errors
        self._settings = settings
        self._expected = expected

    @cached_property
    def space(self) -> SearchSpace:
        """Stages and choices."""
        return SearchSpace.of_sizes(self._name, [size for group in self.landscape.groups for size in group])

    def fingerprint(self) -> dict[str, str]:
        """The settings."""
        return {name: str(value) for name, value in self._settings.items()}

    def costs(self) -> CostTable:
        """Exact costs of every choice."""
        return self._costs

    def prepare(self, progress: Progress) -> Task:
        """The landscape as a task; there is nothing to wait for."""
        del progress
        return Task(self.space, self._costs, SyntheticEvaluator(self.landscape), self._calibration_errors, self._expected)


@final
class SyntheticEvaluator:
    """Computes divergences from the landscape's formula."""

    def __init__(self, landscape: Landscape) -> None:
        self.landscape = landscape

    def measure(self, candidates: Sequence[Candidate], eps: Sequence[float] = ()) -> list[Measurement]:
        """One exact measurement a candidate."""
        del eps
        return [Measurement(float(value), n_samples=1) for value in self.landscape.divergence(candidates)] if candidates else []

    def optimum(self, problem: Problem, eps: float) -> Candidate | None:
        """The cheapest allowed candidate within eps, None when there is none.

        Raises:
            InputError: bounds or rules on a space that is too large to be listed.
        """
        if not problem.bounds and not problem.space.rules:
            return self.landscape.optimum(problem.costs.by_choice[problem.objective], eps)
        if len(self.landscape.terms) > 1:
            raise InputError(f"the optimum under bounds or rules is known up to {ONE_GROUP} candidates; '{problem.space.name}' is larger")
        divergence = self.landscape.of_x(self.landscape.terms[0])
        divergence[0] = 0.0
        return enumerated_optimum(problem, divergence, eps)


def make_synthetic(
    seed: int | str = 0,
    *,
    stages: int = 7,
    choices: int = 4,
    compounding: float = 0.1,
    interaction: float = 0.1,
    interaction_spread: float = 0.2,
    noise: float = 0.03,
    tails: float = math.inf,
    informativeness: float | None = 1.0,
    offset: float = 0.0,
    foresight: float | None = None,
    sensitivity: float = SENSITIVITY,
    deviation: float = DEVIATION,
) -> SyntheticSpace:
    """A random landscape, the same for the same arguments.

    Args:
        seed: decides all random numbers; `--space synthetic:7` passes it.
        stages: `S`.
        choices: `K`, the teacher included, in every stage.
        compounding: exponent beyond 1 of the sum of losses.
        interaction: mean of the pair coefficients `c_st`; negative ones cancel.
        interaction_spread: their standard deviation.
        noise: standard deviation of `xi`'s contribution, which no model of stages and pairs explains; 0.2 is much.
        tails: degrees of freedom of a Student t distribution for `xi` (above 2); infinite for a normal one.
        informativeness: correlation of log calibration errors with the log errors that losses follow from; None gives no calibration errors.
        offset: taken off every divergence but the teacher's, so that some become negative.
        foresight: how far expected losses err: standard deviation of the errors of their logs that a stage's blocks have in common; half of it that all blocks
            have in common, and each block of its own. 0.4 is that of the embedded teacher's. None gives no expected losses.
        sensitivity: standard deviation of what a stage adds to the log losses of its blocks.
        deviation: standard deviation of what each block adds.
    """
    number = _seed(seed)
    stages, choices = arguments.whole("stages", stages), arguments.whole("choices", choices)
    settings: dict[str, object] = {
        "seed": number, "stages": stages, "choices": choices, "compounding": compounding, "interaction": interaction,
        "interaction_spread": interaction_spread, "noise": noise, "tails": tails, "informativeness": informativeness, "offset": offset,
    }  # fmt: skip
    _check({**settings, "foresight": foresight, "sensitivity": sensitivity, "deviation": deviation})
    others = {"foresight": (foresight, None), "sensitivity": (sensitivity, SENSITIVITY), "deviation": (deviation, DEVIATION)}
    settings |= {name: value for name, (value, usual) in others.items() if value != usual}  # spaces without them keep their fingerprints
    rng = np.random.default_rng(number)
    costs, error, loss = _stages(stages, choices, sensitivity, deviation, rng)
    coefficients = rng.normal(interaction, interaction_spread, (stages, stages))
    reported = _reported(error, informativeness, rng)
    groups = grouped(stages, choices)
    terms = make_terms(groups, loss, coefficients, (noise, tails), rng)
    middle = middle_of(merged_front(groups, terms, costs.by_choice["params"]))
    landscape = Landscape(groups, terms, middle, compounding, offset)
    expected = None if foresight is None else _expected(landscape.of_x(loss), foresight, rng)
    return SyntheticSpace(f"synthetic-{number}", landscape, costs, reported, settings, expected)


def _check(settings: Mapping[str, Any]) -> None:
    """Raises unless every setting is a number within its range; None where nothing is to be known of the blocks."""
    for name, value in settings.items():
        if not (name == "tails" and value == math.inf) and not (name in ("informativeness", "foresight") and value is None):
            arguments.number(name, value)
    stages, choices, informativeness, tails = (settings[name] for name in ("stages", "choices", "informativeness", "tails"))
    if stages < 1 or choices < 1:
        raise InputError(f"a synthetic space needs at least 1 stage and 1 choice, got {stages} and {choices}")
    if informativeness is not None and not 0 <= informativeness <= 1:
        raise InputError(f"informativeness must be in 0..1, got {informativeness}")
    if tails <= 2:
        raise InputError(f"tails must be above 2 (the variance must exist), got {tails}")
    for name in ("noise", "interaction_spread", "sensitivity", "deviation", "foresight"):
        if settings[name] is not None and settings[name] < 0:
            raise InputError(f"{name} must not be negative, got {settings[name]}")


def _seed(seed: int | str) -> int:
    try:
        number = int(seed)
    except (TypeError, ValueError, OverflowError):
        number = -1
    if number < 0:
        raise InputError(f"space 'synthetic:{seed}': the seed must be an integer of at least 0")
    return number


def _stages(stages: int, choices: int, sensitivity: float, deviation: float, rng: np.random.Generator) -> tuple[CostTable, Floats, Floats]:
    """Costs, true calibration errors `(S, K)` and losses `(S, K)`.

    Loss = error x sensitivity of the stage x a deviation of each choice. Cheap stages are sensitive.
    """
    log_size = rng.normal(0, 0.6, (stages, 1))
    kept = np.sort(rng.uniform(0.05, 0.9, (stages, choices)), axis=1)[:, ::-1]
    kept[:, 0] = 1.0
    params = np.round(1e6 * np.exp(log_size) * kept)
    macs = np.round(1e9 * np.exp(rng.normal(0, 1, (stages, 1))) * kept ** rng.uniform(0.7, 1.3, (stages, 1)))
    error = (1 - kept) ** 1.5 * np.exp(rng.normal(0, 0.1, (stages, choices)))
    sensitivities = np.exp(-0.4 * log_size + rng.normal(0, sensitivity, (stages, 1)))
    loss = error * sensitivities * np.exp(rng.normal(0, deviation, (stages, choices)))
    fixed = {"params": round(0.1 * float(params[:, 0].sum())), "macs": round(0.1 * float(macs[:, 0].sum()))}
    return CostTable({"params": params, "macs": macs}, fixed), error, loss


def _expected(alone: Floats, spread: float, rng: np.random.Generator) -> Floats:
    """The losses of blocks alone `(S, K)` with errors as `make_synthetic` says."""
    erring = rng.normal(0, spread / 2, alone.shape) + rng.normal(0, spread, (len(alone), 1)) + rng.normal(0, spread / 2)
    expected: Floats = np.maximum(alone, 0.0) * np.exp(erring)
    expected[:, 0] = 0.0
    return expected


def _reported(error: Floats, informativeness: float | None, rng: np.random.Generator) -> Floats | None:
    """Calibration errors whose logarithm has that correlation with the true ones'."""
    noise = rng.normal(size=error.shape)
    if informativeness is None or error.shape[1] == 1:
        return None
    log_error = np.log(np.where(error > 0, error, 1.0))
    centre, spread = log_error[:, 1:].mean(), log_error[:, 1:].std() or 1.0
    mixed = informativeness * (log_error - centre) + math.sqrt(1 - informativeness**2) * spread * noise
    reported: Floats = np.exp(centre + mixed)
    reported[:, 0] = 0.0
    return reported
