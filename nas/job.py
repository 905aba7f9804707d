"""The main job in one call: prepare a space, search it, verify and save the winners. `nas search` is this function."""

import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nas import arguments
from nas.asked import SearchOptions as SearchOptions
from nas.asked import asked as asked_for
from nas.bounds import check_together
from nas.callbacks import Callback, closing
from nas.clock import Clock, in_parts
from nas.crew import Crew
from nas.errors import InputError
from nas.executor import Executor, calibrate_apart, measured_apart, prepare
from nas.files import MANIFEST, write_manifest
from nas.loggers import LOGGERS, logger
from nas.modelcard import card, write_card
from nas.mounts import network_filesystem
from nas.names import check_is_space, check_optimizer, own_code, resolve_optimizer, resolve_space
from nas.problem import Bound, CostTable, Floats, Problem
from nas.progress import Progress, Quiet
from nas.protocols import HasMoreCosts, Space, StatesWhatIsLeft, Task
from nas.record import Record
from nas.report import ReportWriter
from nas.result import SearchResult as SearchResult
from nas.result import stage_table as stage_table
from nas.run_directory import RunDirectory
from nas.run_space import recorded_file
from nas.space import SearchSpace
from nas.study import Study, Winner
from nas.trial import Trial
from nas.versions import installed


def search(
    space: "Space | str",
    eps: float | Sequence[float],
    *,
    space_options: Mapping[str, Any] | None = None,
    workdir: Path | str | None = "runs",
    name: str | None = None,
    new: bool = False,
    workers: int | Crew = 1,
    progress: Progress | None = None,
    on_trial: Callable[[Study], None] | None = None,
    callbacks: Sequence[Callback] = (),
    log: Sequence[str] = (),
    **options: Any,
) -> SearchResult:
    """Searches the cheapest candidate for each eps.

    Args:
        space: a space, or what `--space` takes.
        eps: one or several bounds on the divergence.
        space_options: passed on to the factory of a space given by name (teacher, library, data, device).
        workdir: where the run directory goes; None keeps the record in memory and saves nothing.
        name: the run directory's name; by default made from the space and a hash of everything that decides the result.
        new: moves an existing run of that name aside and starts afresh; otherwise the run goes on.
        workers: how many processes calibrate and measure, or who does in full; more than one need a space given by name.
        progress: where to report; silent by default.
        on_trial: called with the study before the first and after each trial.
        callbacks: followers of the search, such as loggers; the run directory's `report.html` is always kept.
        log: names of loggers (tensorboard, wandb, mlflow), which write to the run directory's `logs`.
        options: the other fields of `SearchOptions`.

    Raises:
        NasError: bad input, with one line that says what to do.
    """
    asked = asked_for(eps, options)
    check_optimizer(asked.optimizer)
    place = None if workdir is None else arguments.folder("workdir", workdir)
    named = None if name is None else arguments.folder_name("name", name)
    afresh = arguments.flag("new", new)
    chosen = {} if space_options is None else arguments.options("space_options", space_options, written=place is not None)
    report: Progress = Quiet() if progress is None else arguments.with_methods("progress", progress, "note", "track")
    watching, loggers = _followers(on_trial, callbacks), [LOGGERS.check(logs_to) for logs_to in arguments.texts("log", log, "tensorboard")]
    crew = workers if isinstance(workers, Crew) else Crew(workers)
    source = resolve_space(space, **chosen) if isinstance(space, str) else space
    check_is_space(source, "nas.search needs a space or its name, got")
    origin = {"name": space, **chosen} if isinstance(space, str) else {"name": source.space.name}
    started = time.monotonic()
    if asked.minimize or asked.where:  # wrong ones stop here, before anything is written or calibrated
        make_problem(source.space, asked_costs(source, source.costs(), asked), asked)
    if not crew.alone and not isinstance(space, str):
        raise InputError("several workers need a space they can make themselves; give its name or path/to/file.py:function")
    if place is None:
        with crew.open(str(space), chosen, source.fingerprint()) as executor:
            return _search(source, asked, None, report, watching, started, executor)
    config = run_config(source, asked, origin, crew.workers)
    run = RunDirectory(place / (named or run_name(source.space.name, config)))
    if afresh:
        run.reset()
    run.create({**config, **(recorded_file(run.path, space) if isinstance(space, str) else {})})
    if kind := network_filesystem(run.path):
        report.note(f"{run.path} lies on a network file system ({kind}): use one machine at a time, or --workdir on a local disk")
    with run.lock(), crew.open(str(space), chosen, source.fingerprint()) as executor:
        followers = [*watching, *(logger(logs_to, run.path / "logs") for logs_to in loggers), ReportWriter(run.path, report)]
        return _search(source, asked, run, report, followers, started, executor)


def run_config(source: Space, asked: SearchOptions, origin: Mapping[str, Any], workers: int = 1) -> dict[str, dict[str, Any]]:
    """What `run.toml` holds: the resolved configuration, the fingerprints of what the space is made of, and versions."""
    return {
        "space": dict(origin),
        "search": {
            "eps": list(asked.eps),
            "optimizer": asked.optimizer,
            "seed": asked.seed,
            "minimize": asked.minimize,
            "where": list(asked.where),
            "delta": asked.delta,
            "keep_dominated": asked.keep_dominated,
            "workers": workers,
        },
        "asked": {"trials": asked.trials},
        "fingerprints": {**source.fingerprint(), **_measured_costs(source, asked), **own_code(asked.optimizer)},
        "versions": {package: installed(package) for package in ("stage-nas", "torch", "numpy")},
    }


def _measured_costs(source: Space, asked: SearchOptions) -> dict[str, str]:
    """Hashes of the costs on demand that the search rests on: a latency measured again is another search."""
    costs = asked_costs(source, CostTable({}), asked)
    return {metric: hashlib.sha256(table.tobytes()).hexdigest()[:16] for metric, table in costs.by_choice.items()}


def run_name(name: str, config: Mapping[str, Mapping[str, Any]]) -> str:
    """`SPACE-HASH`: the space's name and a hash of everything that decides the result."""
    content = json.dumps([config["space"], config["search"], config["fingerprints"]], sort_keys=True)
    stem = "".join(c if c.isalnum() or c in "-_" else "_" for c in name)
    return f"{stem}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"


def make_problem(
    space: SearchSpace, costs: CostTable, asked: SearchOptions, calibration_errors: Floats | None = None, expected_losses: Floats | None = None
) -> Problem:
    """The problem that a space and the options state; an unknown metric or a bound that nothing satisfies is an error."""
    bounds = tuple(Bound.parse(text, costs) for text in asked.where)
    check_together(bounds, costs)
    return Problem(space, costs, asked.eps, default_objective(costs, asked.minimize), bounds, calibration_errors, expected_losses)


def asked_metrics(asked: SearchOptions) -> set[str]:
    """The metrics that the options name."""
    named = {re.split(r"\W", text.strip(), maxsplit=1)[0] for text in asked.where}
    return named | ({asked.minimize} if asked.minimize else set())


def asked_costs(source: Space, costs: CostTable, asked: SearchOptions, space: SearchSpace | None = None) -> CostTable:
    """The costs with those that the options name and the space counts on demand; `space` is the source's own, or what calibration left of it."""
    more = [metric for metric in source.more_costs if metric in asked_metrics(asked)] if isinstance(source, HasMoreCosts) else []
    by_choice, fixed = dict(costs.by_choice), dict(costs.fixed)
    for metric in more:
        assert isinstance(source, HasMoreCosts)
        whole, fixed[metric] = source.cost(metric)
        by_choice[metric] = _left_of(whole, source.space, space or source.space)
    return CostTable(by_choice, fixed, costs.notes)


def _left_of(table: Floats, whole: SearchSpace, space: SearchSpace) -> Floats:
    """The entries of the choices that are left, `(S, K)`."""
    left = np.full((len(space.stages), max(space.sizes)), np.nan)
    for s, stage in enumerate(space.stages):
        for k, choice in enumerate(stage.choices):
            left[s, k] = table[s, whole.stages[s].index(choice.name)]
    return left


def default_objective(costs: CostTable, asked: str | None = None) -> str:
    """The cost to minimise: the one asked for, else `params`, else the only one there is."""
    only = costs.metrics[0] if len(costs.metrics) == 1 else "params"
    return costs.check_metric(asked or only)


def _search(
    source: Space,
    asked: SearchOptions,
    run: RunDirectory | None,
    report: Progress,
    callbacks: Sequence[Callback],
    started: float,
    executor: Executor | None = None,
) -> SearchResult:
    left_out = calibrate_apart(source, executor, report) if executor else {}
    task = prepare(source, report, left_out)
    calibrated = time.monotonic()
    for note in task.notes:
        report.note(note)
    problem = make_problem(task.space, asked_costs(source, task.costs, asked, task.space), asked, task.calibration_errors, task.expected_losses)
    record = run.record() if run else Record()
    _write_facts(record, task, problem, asked)
    record.set_fact("blocks", dict(task.blocks))
    if run:
        record.set_fact("config", run.config())
    optimizer = resolve_optimizer(asked.optimizer, problem, asked.seed, delta=asked.delta, keep_dominated=asked.keep_dominated)
    dominated = optimizer.pruned(record.trials()) if isinstance(optimizer, StatesWhatIsLeft) else {}
    if dominated:
        report.note("left for last (dearer and worse than another block): " + "; ".join(f"{s}: {', '.join(c)}" for s, c in dominated.items()))
    evaluator, verifier = (task.evaluator, task.verifier) if executor is None else measured_apart(executor, task, left_out)
    study = Study(problem, optimizer, evaluator, record, verifier=verifier)
    clock = Clock(record, started, calibrated)

    def follow(trials: Sequence[Trial]) -> None:
        clock.trial()
        for callback in callbacks:
            callback.trial(study, trials[-1])

    with closing(callbacks, clock.write):
        for callback in callbacks:
            callback.start(study)
        stopped = study.run(asked.trials, follow)
        winners = tuple(study.winner(value) for value in asked.eps)
        paths = _export(task, winners, run, record, problem) if run else {}
        seconds = in_parts(clock.write(), study.seconds_measuring, study.seconds_proposing, alone=executor is None)
        statements = tuple(map(str, optimizer.statement(study.trials).values())) if isinstance(optimizer, StatesWhatIsLeft) else ()
        result = SearchResult(task.space.name, study, winners, stopped, run.path if run else None, seconds, paths, statements, task.scale)
        record.set_fact("result", result.to_json())
    for callback in callbacks:
        callback.end(result.to_json())
    return result


def _write_facts(record: Record, task: Task, problem: Problem, asked: SearchOptions) -> None:
    """What readers of the record need beside the trials."""
    record.set_fact("table", {**stage_table(problem), "space": task.space.name, "legend": task.legend, "divergence": task.divergence})
    record.set_fact("curves", {name: [list(point) for point in curve] for name, curve in task.curves.items()})
    record.set_fact("by_level", {name: dict(errors) for name, errors in task.by_level.items()})
    record.set_fact("trials_asked", asked.trials)
    record.set_fact("scale", task.scale)
    record.set_fact("references", {name: dict(design) for name, design in task.references.items()})
    if task.flow is not None:
        edges = [[a, b, list(shared["values"])] for a, b, shared in task.flow.edges(data=True)]
        record.set_fact("flow", {"steps": list(task.flow.nodes), "edges": edges})


@dataclass(frozen=True, slots=True)
class _Watcher:
    """A function of the study as a callback."""

    watch: Callable[[Study], None]

    def start(self, study: Study) -> None:
        self.watch(study)

    def trial(self, study: Study, trial: Trial) -> None:
        del trial
        self.watch(study)

    def end(self, result: Mapping[str, Any] | None) -> None:
        del result


def _followers(on_trial: object, callbacks: object) -> list[Callback]:
    """Whoever is told of a search, checked."""
    if not isinstance(callbacks, Sequence):
        raise InputError(f"callbacks must be a list of followers with start(), trial() and end(), got {arguments.shown(callbacks)}")
    found = [arguments.with_methods("each of callbacks", callback, "start", "trial", "end") for callback in callbacks]
    return found if on_trial is None else [_Watcher(arguments.function("on_trial", on_trial)), *found]


def _export(task: Task, winners: Sequence[Winner], run: RunDirectory, record: Record, problem: Problem) -> dict[float, str]:
    """Saves each feasible winner that is not saved yet, with a card; eps -> its folder."""
    paths: dict[float, str] = {}
    if task.export is None:
        return paths
    saved: dict[str, Any] = record.fact("saved", {})
    for winner in winners:
        if not winner.feasible or winner.trial is None:
            continue
        folder = run.winner(winner.eps, several=len(winners) > 1)
        if saved.get(folder.name) != list(winner.trial.candidate) or not folder.exists():
            (folder / MANIFEST).unlink(missing_ok=True)  # of another candidate, should the export write into the folder that is there
            task.export(winner.trial.candidate, folder)
            if not (folder / MANIFEST).exists():
                write_manifest(folder)
            write_card(folder, card(problem, winner, run.config(), task.loading))
            saved[folder.name] = list(winner.trial.candidate)
            record.set_fact("saved", saved)
        paths[winner.eps] = str(folder)
    return paths
