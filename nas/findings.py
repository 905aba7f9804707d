"""What a run directory holds, read as far as it can be: what reports and explanations stand on, without loading the space itself."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nas.arguments import folder
from nas.bounds import why_nothing
from nas.cascades import cascades
from nas.errors import DamagedFile, NasError
from nas.nearby import no_run
from nas.problem import Bound, CostTable, Floats, Problem
from nas.record import Record
from nas.run_directory import RunDirectory, check_config, search_command
from nas.space import Candidate, Choice, SearchSpace, Stage
from nas.trial import Trial, incumbent, least_divergent


@dataclass(frozen=True)
class Found:
    """The winner of one eps as far as it is known: verified when the run is done, else the incumbent or the least divergent trial."""

    eps: float
    feasible: bool
    trial: Trial | None
    heldout: float | None = None
    relative: float | None = None
    path: str | None = None
    rejected: tuple[tuple[Candidate, float | None], ...] = ()


@dataclass(frozen=True)
class Findings:
    """A run as it stands.

    `problem` is rebuilt from the recorded costs (recipes and rules are not part of it); None when the run never got that far. `facts` are the
    record's other entries. `missing` says in whole sentences what could not be read and why. `cascades` are what `nas cascade` made of the winners.
    """

    path: Path
    config: Mapping[str, Any]
    trials: tuple[Trial, ...]
    problem: Problem | None
    facts: Mapping[str, Any] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    cascades: tuple[Mapping[str, Any], ...] = ()

    @property
    def done(self) -> bool:
        """Whether the search came to its end."""
        return self.facts.get("result") is not None

    @property
    def space(self) -> str:
        """The space's name."""
        result = self.facts.get("result") or {}
        return str(result.get("space") or self.config.get("space", {}).get("name") or self.path.name)

    @property
    def eps(self) -> tuple[float, ...]:
        """Every eps of the search."""
        given = self.config.get("search", {}).get("eps", [])
        return tuple(float(e) for e in given) if isinstance(given, list) else ()

    @property
    def teacher(self) -> dict[str, float]:
        """The teacher's costs, empty when unknown."""
        return {} if self.problem is None else self.problem.costs.of(self.problem.space.teacher)

    @property
    def objective(self) -> str:
        """The cost that is minimised."""
        if self.problem is not None:
            return self.problem.objective
        return next(iter(self.trials[0].costs), "params") if self.trials else "params"

    @property
    def winners(self) -> tuple[Found, ...]:
        """One for each eps."""
        recorded = {row["eps"]: row for row in (self.facts.get("result") or {}).get("winners", [])}
        return tuple(self._winner(eps, recorded.get(eps)) for eps in self.eps)

    @property
    def by_level(self) -> Mapping[str, Mapping[str, float]]:
        """Each block's held-out error by range of the noise level, least first, as `stage/choice`; empty where none was kept."""
        return self.facts.get("by_level") or {}

    @property
    def command(self) -> str:
        """A command that states the same search."""
        return search_command(self.path, self.config, self.facts.get("trials_asked"))

    def _winner(self, eps: float, recorded: Mapping[str, Any] | None) -> Found:
        by_candidate = {trial.candidate: trial for trial in self.trials}
        if recorded is not None and self.problem is not None and recorded.get("candidate"):
            candidate = self.problem.space.encode(recorded["candidate"])
            trial = by_candidate.get(candidate) or Trial(0, candidate, self.problem.costs.of(candidate), recorded.get("divergence"))
            rejected = tuple((self.problem.space.encode(r["candidate"]), r.get("heldout_divergence")) for r in recorded.get("rejected", ()))
            found = recorded.get("path")
            return Found(
                eps, bool(recorded.get("feasible")), trial, recorded.get("heldout_divergence"), recorded.get("relative_divergence"),
                str(self.path / Path(found).name) if found else None, rejected,
            )  # fmt: skip
        within = [t for t in self.trials if self.problem is None or self.problem.allowed(np.array([t.candidate]))[0]]
        best = incumbent(within, eps, self.objective)
        return Found(eps, best is not None, best or least_divergent(self.trials))


def read_run(path: Path | str) -> Findings:
    """Everything that can be read of a run; what cannot be is named in `missing`.

    Raises:
        InputError: the folder holds neither a configuration nor a record of a run.
    """
    path = folder("the run", path)
    _check_is_run(path)
    missing: list[str] = []
    trials, facts = _recorded(path, missing)
    config = _config(path, facts, missing)
    problem = recorded_problem(config, facts, missing)
    if problem is not None:
        trials = _fitting(trials, problem, missing)
    if not trials and problem is not None and "result" in facts:
        missing.append(f"Nothing was measured: {why_nothing(problem)}.")
    elif not trials:
        missing.append("No candidate has been measured yet; start the same `nas search` again to go on.")
    elif "result" not in facts:
        missing.append("The search has not come to its end: what is shown is what its trials say so far, not verified on held-out samples.")
    found = _cascades(path, problem, missing)
    return Findings(path, config, tuple(trials), problem, facts, tuple(missing), found)


def read_config(path: Path) -> tuple[dict[str, Any], list[str]]:
    """The configuration of a run, which needs neither a record nor a trial for it, and sentences on what is lost.

    Raises:
        InputError: the folder holds neither a configuration nor a record of a run.
        DamagedFile: the configuration is lost, and no copy of it is left.
    """
    _check_is_run(path)
    try:
        return RunDirectory(path).config(), []
    except DamagedFile as error:
        missing: list[str] = []
        config = _config(path, _recorded(path, [])[1], missing)
        if not config:
            raise DamagedFile(f"{error}, and the record of run '{path}' has no copy of it; put it back from a copy") from None
        return config, missing


def _check_is_run(path: Path) -> None:
    if not any((path / name).is_file() for name in ("run.toml", "study.db")):
        raise no_run(path)


def _cascades(path: Path, problem: Problem | None, missing: list[str]) -> tuple[Mapping[str, Any], ...]:
    """What `nas cascade` left in the run; nothing where the costs to set it beside are unknown."""
    if problem is None:
        return ()
    try:
        return tuple(cascades(path, problem.costs.of(problem.space.teacher)))
    except DamagedFile as error:
        missing.append(f"A result of `nas cascade` could not be read ({error}).")
        return ()


def _config(path: Path, facts: Mapping[str, Any], missing: list[str]) -> dict[str, Any]:
    """What `run.toml` says; where it cannot be read, the record's copy."""
    try:
        return RunDirectory(path).config()
    except DamagedFile as error:
        damage = error
    try:
        kept = check_config(facts.get("config"), "the record's copy of run.toml")
    except DamagedFile:
        missing.append(f"The configuration is unreadable ({damage}), so the bounds of the search are unknown.")
        return {}
    missing.append(f"The configuration is unreadable ({damage}); the record's copy is shown, which `nas doctor {path} --repair` writes back.")
    return kept


def _recorded(path: Path, missing: list[str]) -> tuple[list[Trial], dict[str, Any]]:
    """Trials and facts; whatever part of the record is damaged is left out and named."""
    facts: dict[str, Any] = {}
    try:
        with Record(path / "study.db", read_only=True) as record:
            trials, lost = record.readable()
            for name in record.facts():
                try:
                    facts[name] = record.fact(name)
                except NasError as error:
                    lost.append(str(error))
    except NasError as error:
        missing.append(f"The record could not be read ({error}).")
        return [], facts
    if lost:
        missing.append(f"Parts of the record could not be read: {'; '.join(lost)}.")
    return trials, facts


def facts_of(record: Record) -> dict[str, Any]:
    """All facts of a sound record."""
    return {name: record.fact(name) for name in record.facts()}


def _fitting(trials: list[Trial], problem: Problem, missing: list[str]) -> list[Trial]:
    """The trials that are candidates of the problem with all its costs."""
    sizes, metrics = problem.space.sizes, set(problem.costs.metrics)
    fit = [t for t in trials if len(t.candidate) == len(sizes) and all(0 <= k < n for k, n in zip(t.candidate, sizes, strict=True)) and metrics <= set(t.costs)]
    if len(fit) < len(trials):
        missing.append(f"{len(trials) - len(fit)} trials do not belong to the recorded space and are left out.")
    return fit


def recorded_problem(config: Mapping[str, Any], facts: Mapping[str, Any], missing: list[str]) -> Problem | None:
    """The problem that a run states, rebuilt from its table of stages; None, and a sentence to `missing`, where it cannot be."""
    table, search = facts.get("table"), config.get("search", {})
    if table is None:
        missing.append("The costs of the blocks are not recorded: the run stopped before its space was ready, or was made by another version.")
        return None
    try:
        space, costs, errors, expected = _from_table(str(config.get("space", {}).get("name", "space")), table)
        objective = search.get("minimize") or objective_of(search, costs.metrics)
        bounds = tuple(Bound.parse(text, costs) for text in search.get("where", ()))
        return Problem(space, costs, tuple(float(e) for e in search.get("eps", ())) or (0.0,), objective, bounds, errors, expected)
    except (NasError, KeyError, TypeError, ValueError, AttributeError) as error:
        missing.append(f"The recorded costs of the blocks cannot be used ({type(error).__name__}: {error}).")
        return None


def objective_of(search: Mapping[str, Any], metrics: Sequence[str]) -> str:
    """The cost that a run minimises, by its configuration; `params`, else the first there is, where that names none of them."""
    known = [metric for metric in (search.get("minimize"), "params", *metrics) if metric in metrics]
    return str(known[0]) if known else "params"


def _from_table(name: str, table: Mapping[str, Any]) -> tuple[SearchSpace, CostTable, Floats | None, Floats | None]:
    """Space, costs, calibration errors and expected losses that `nas.job.stage_table` wrote down."""
    rows = table["stages"]
    space = SearchSpace(name, tuple(Stage(row["name"], tuple(Choice(choice["name"]) for choice in row["choices"])) for row in rows))
    shape = (len(rows), max(space.sizes))
    by_choice = {metric: np.full(shape, np.nan) for metric in table["fixed"]}
    told = {"calibration_error": np.full(shape, np.nan), "expected_loss": np.full(shape, np.nan)}
    for s, row in enumerate(rows):
        for k, choice in enumerate(row["choices"]):
            for metric, values in by_choice.items():
                values[s, k] = float(choice[metric])
            for name, values in told.items():
                values[s, k] = math.nan if choice.get(name) is None else float(choice[name])
    errors, expected = (values if np.isfinite(values[:, 1:]).any() else None for values in told.values())
    return space, CostTable(by_choice, {m: float(v) for m, v in table["fixed"].items()}), errors, expected
