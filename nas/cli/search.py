"""`nas search`: the main job."""

import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from nas.cli import options
from nas.cli.console import SearchView, Terminal, err, print_json
from nas.errors import InputError

if TYPE_CHECKING:
    from nas.trial import Trial


def search(
    space: options.SpaceName = "tocsr_unet",
    eps: Annotated[list[float] | None, typer.Option("--eps", help="Bound on the divergence from the teacher; several give one winner each.")] = None,
    teacher: options.Teacher = None,
    library: options.Library = None,
    data: options.Pictures = None,
    optimizer: Annotated[str, typer.Option("--optimizer", help="`nas optimizers` lists them; or path/to/file.py:NAME.")] = "eps_gp",
    trials: Annotated[int, typer.Option("--trials", help="Measurements at most, over all eps.")] = 60,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the optimizer.")] = 0,
    minimize: options.Minimize = None,
    where: Annotated[list[str] | None, typer.Option("--where", help="Bound on a known cost, such as 'macs<=75%'; several allowed.")] = None,
    delta: Annotated[
        float | None, typer.Option("--delta", help="Stop when a better candidate is less probable than this; by default the optimizer's own, 0.01 of eps_gp.")
    ] = None,
    keep_dominated: Annotated[bool, typer.Option("--keep-dominated", help="Search blocks too that a cheaper and better one dominates.")] = False,
    workdir: Annotated[Path, typer.Option("--workdir", help="Where run directories are kept.")] = Path("runs"),
    name: Annotated[str | None, typer.Option("--name", help="Name of the run directory; by default SPACE-HASH.")] = None,
    new: Annotated[bool, typer.Option("--new", help="Start afresh; an existing run of that name is moved aside.")] = False,
    device: options.Device = None,
    numerics: options.NumericsWords = None,
    threads: options.Threads = None,
    workers: options.Workers = 1,
    timeout: options.TaskTimeout = 3600.0,
    executor: options.ExecutorName = "local",
    address: options.Address = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    log: options.Log = None,
    _: options.Config = None,
) -> None:
    """Search the cheapest network within eps of the teacher: calibrates, searches, verifies, saves the winner.

    The same command goes on with a run that was stopped, or prints the result of one that is done.
    """
    from nas.bounds import ways_out, why_nothing
    from nas.crew import Crew
    from nas.files import check_writable
    from nas.job import SearchOptions
    from nas.job import search as run_search
    from nas.loggers import LOGGERS

    if not eps:
        raise InputError("give at least one --eps, such as --eps 0.005")
    SearchOptions(tuple(eps), optimizer, trials, seed, minimize, tuple(where or ()), delta)  # bad values stop here, before torch is loaded
    check_writable(workdir, "choose another --workdir")
    for logger in log or ():
        LOGGERS.check(logger)
    _check_names(space, optimizer)
    crew = Crew(workers, executor, address, timeout, threads)
    options.set_threads(threads if crew.alone else crew.threads_each)
    from nas.cli.results import print_result

    with SearchView(trials, quiet, verbose) as view:
        result = run_search(
            space, eps, space_options=options.space_options(teacher, library, data, device, numerics), workdir=workdir, name=name, new=new, workers=crew,
            progress=Terminal(quiet), on_trial=view.update, optimizer=optimizer, trials=trials, seed=seed, minimize=minimize,
            where=tuple(where or ()), delta=delta, keep_dominated=keep_dominated, log=log or (),
        )  # fmt: skip
    summary = result.to_json()
    if json:
        print_json(summary)
    else:
        print_result(summary, result.table, quiet)
        if result.run is not None and not quiet:
            _point_on(result.run)
    if not any(winner["feasible"] for winner in summary["winners"]):
        if not result.study.trials:
            err.print(f"nothing to measure: {why_nothing(result.study.problem)}")
            raise typer.Exit(3)
        failed = failures(result.study.trials)
        shown = "" if failed else f"no measured candidate is within eps{' and the bounds' * bool(where)}, the least divergent one is shown; "
        err.print(f"nothing feasible: {shown}{failed or ways_out(eps, bool(where), summary['stopped'])}")
        raise typer.Exit(3)


def _point_on(run: Path) -> None:
    """Where the report of a run lies, and which command explains its winners."""
    from nas.run_directory import RunDirectory

    err.print(Text(f"see it: {RunDirectory(run).report}; why: {shlex.join(['nas', 'explain', str(run)])}", style="dim"))


def failures(trials: "Sequence[Trial]") -> str:
    """Why nothing but the teacher could be measured, if nothing could: the commonest reason."""
    tried = [trial for trial in trials if any(trial.candidate)]
    reasons = Counter(trial.reason or "no reason given" for trial in tried if trial.divergence is None)
    if not reasons or any(trial.divergence is not None for trial in tried):
        return ""
    return f"all {len(tried)} trials failed, mostly because of: {reasons.most_common(1)[0][0]}"


def _check_names(space: str, optimizer: str) -> None:
    from nas.names import check_optimizer, check_space

    check_space(space)
    check_optimizer(optimizer)
