"""`nas show` and `nas export`: what a run directory holds."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nas.cli import options
from nas.cli.console import out, print_json
from nas.errors import InputError

if TYPE_CHECKING:
    from nas.run_directory import RunDirectory


def show(run: options.Run, json: options.Json = False) -> None:
    """Show what a run found; of an unfinished run, what is known so far."""
    from nas.cli.results import print_result
    from nas.run_directory import RunDirectory, search_command
    from nas.summary import summarize, trial_row

    directory = RunDirectory.open(run)
    with directory.record(read_only=True) as record:
        summary, trials, table = summarize(directory, record), record.trials(), record.fact("table")
        command = search_command(run, directory.config(), record.fact("trials_asked"))
    if json:
        names = [(stage["name"], [c["name"] for c in stage["choices"]]) for stage in table["stages"]] if table else []
        print_json({**summary, "trials": [trial_row(trial, names) for trial in trials]})
    elif table is None:
        out.print(f"no trial yet: the run has not finished preparing its space; go on with: {command}", soft_wrap=True)
    else:
        print_result(summary, table)
        if summary["stopped"] == "interrupted":
            out.print(f"go on with: {command}", soft_wrap=True)


def report(
    run: options.Run,
    to: Annotated[Path | None, typer.Option("--to", help="File to write; report.html in the run directory by default.")] = None,
    json: options.Json = False,
) -> None:
    """Write a run's report, one HTML file that needs nothing else; also of an unfinished or damaged run."""
    options.set_threads(1)
    from nas.report import write_report

    written = write_report(run, to)
    if json:
        print_json({"run": str(run), "report": str(written)})
    else:
        out.print(f"report in {written}", soft_wrap=True)


def export(
    run: options.Run,
    to: Annotated[Path, typer.Option("--to", help="Folder to write the model to; it must not exist.")],
    eps: Annotated[float | None, typer.Option("--eps", help="Which winner, when the run has several.")] = None,
    candidate: Annotated[str | None, typer.Option("--candidate", help="Another network of the space: 'stage=choice,...' or 'teacher'.")] = None,
    trust: Annotated[bool, typer.Option("--trust", help="Run the Python file that the run names as its space.")] = False,
    push: Annotated[str | None, typer.Option("--push-to-hub", metavar="USER/NAME", help="Upload the folder to the Hugging Face hub too.")] = None,
    public: Annotated[bool, typer.Option("--public", help="Make the repository on the hub a public one.")] = False,
    json: options.Json = False,
) -> None:
    """Write a winner, or any candidate of the run's space, as a model folder."""
    from nas.files import copy_whole
    from nas.run_directory import RunDirectory
    from nas.summary import check_winner, winner_folder

    directory = RunDirectory.open(run)
    if to.exists():
        raise InputError(f"'{to}' exists already; give a folder that does not")
    if push is not None:
        from nas.hub import check_repo

        check_repo(push)
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        if candidate is not None:
            _export_candidate(directory, candidate, to, trust)
        else:
            folder = winner_folder(directory, eps)
            check_winner(folder)
            copy_whole(folder, to)
    except OSError as error:
        raise InputError(f"cannot write to '{to}': {error.strerror or error}; choose another --to") from error
    pushed = None
    if push is not None:
        from nas.hub import push as push_folder

        pushed = push_folder(to, push, public=public)
    if json:
        print_json({"path": str(to), "pushed": pushed})
        return
    out.print(f"saved in {to}", soft_wrap=True)
    if pushed is not None:
        out.print(f"pushed to {pushed}", soft_wrap=True)


def _export_candidate(directory: "RunDirectory", text: str, to: Path, trust: bool) -> None:
    from nas.cli.console import Terminal
    from nas.modelcard import candidate_card, write_card
    from nas.run_space import file_of_space, space_of

    config = directory.config()
    file = file_of_space(directory.path, config)
    if file is not None and not trust:  # the run may come from somebody else
        raise InputError(f"run '{directory.path}' names the Python file of its space, '{file}'; give --trust to run that file")
    options.set_threads(None)
    source = space_of(directory.path, config)
    source.space.parse(text)  # wrong names stop here, before anything is calibrated
    task = source.prepare(Terminal())
    if task.export is None:
        raise InputError(f"space '{task.space.name}' has no models to export")
    candidate = task.space.parse(text)
    with directory.record(read_only=True) as record:
        recorded = [[choice["name"] for choice in stage["choices"]] for stage in (record.fact("table") or {"stages": []})["stages"]]
        known = record.trials() if recorded == [[choice.name for choice in stage.choices] for stage in task.space.stages] else []
    trial = next((trial for trial in known if trial.candidate == candidate), None)
    task.export(candidate, to)
    try:
        write_card(to, candidate_card(task.space, task.costs, candidate, trial, config, task.loading))
    except OSError:
        shutil.rmtree(to, ignore_errors=True)
        raise
