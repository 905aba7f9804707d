"""`nas cascade`: a run's winner made smaller by recalibrating blocks on what the blocks before them really hand on."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from nas.amounts import amount, exact, worth_showing
from nas.cli import options
from nas.cli.console import SearchView, Terminal, out, print_json, print_legend
from nas.errors import DamagedFile, InputError, NasError, NothingFeasible


def cascade(
    run: options.Run,
    eps: Annotated[float | None, typer.Option("--eps", help="Which eps of the run, when it has several.")] = None,
    trials: Annotated[int, typer.Option("--trials", min=1, help="Measurements of the search that goes on with larger eps.")] = 120,
    threads: options.Threads = None,
    trust: Annotated[bool, typer.Option("--trust", help="Run the Python file that the run names as its space.")] = False,
    json: options.Json = False,
    new: Annotated[bool, typer.Option("--new", help="Compute again what the run holds for this eps and --trials.")] = False,
    quiet: options.Quiet = False,
) -> None:
    """Go on from a run: recalibrate cheaper candidates block by block, each on its real inputs, until one is within the same eps; save it.

    The same command prints what it found before.
    """
    from nas.bounds import ways_out
    from nas.files import check_writable
    from nas.run_directory import RunDirectory
    from nas.run_space import file_of_space, space_of

    directory = RunDirectory.open(run)
    config = directory.config()
    known = config["search"]["eps"]
    chosen, terminal = _chosen(known, eps), Terminal(quiet)
    open_choice = known if eps is None and len(known) > 1 else []
    folder = directory.path / f"cascade-eps{exact(chosen)}"
    kept = None if new or open_choice else _kept(folder, trials)
    if kept is not None:
        terminal.note("found before; --new computes it again, more --trials look further")
        _print(kept, json, quiet)
        return
    _check_said(run, open_choice, None if trust else file_of_space(run, config))
    check_writable(directory.path, "the result is saved there")
    options.set_threads(threads)
    from nas.spaces.cascade import CascadeSearch
    from nas.spaces.network import NetworkSpace

    space = space_of(run, config)
    if not isinstance(space, NetworkSpace):
        raise InputError(f"run '{run}' searched '{config['space']['name']}', which has no blocks to recalibrate")
    search = CascadeSearch(space, terminal)
    asked = {"minimize": config["search"].get("minimize"), "where": tuple(config["search"].get("where") or ()), "seed": config["search"].get("seed", 0)}
    with SearchView(trials, quiet) as view:
        tried, found = search.smaller(chosen, trials=trials, on_trial=view.update, **asked)
    if found is None:
        none = f"none of {len(tried)} candidates is within eps {chosen:g} after recalibration" if tried else f"nothing is near eps {chosen:g}"
        raise NothingFeasible(f"{none}; {ways_out([chosen], bool(asked['where']), search.stopped)}")
    result = search.export(found, chosen, tried, folder, config, trials)
    _report(directory.path, terminal)
    _print(result, json, quiet)


def _print(result: dict[str, Any], json: bool, quiet: bool) -> None:
    if json:
        print_json(result)
    else:
        _show(result, worth_showing(result["teacher"], (result["teacher"], *result["tried"])), quiet)


def _kept(folder: Path, trials: int) -> dict[str, Any] | None:
    """The result that stands there, if it was asked for with as many trials and its model is whole."""
    from nas.cascades import read_cascade
    from nas.files import check_form, damage

    number = int | float
    row = dict.fromkeys(("divergence_before", "divergence", "heldout_divergence"), number | None)
    try:
        result = read_cascade(folder)
        teacher = check_form(result.get("teacher"), {str: number}, "teacher")
        check_form(result.get("tried"), [{**row, **dict.fromkeys(teacher, number)}], "tried")
        check_form(result.get("spent"), dict.fromkeys(("n_trials", "n_measured", "n_recalibrated", "seconds"), number), "spent")
    except DamagedFile:
        return None
    return {**result, "path": str(folder)} if result.get("trials") == trials and not damage(folder) else None


def _report(run: Path, terminal: Terminal) -> None:
    """The run's report with what was found; that it cannot be written is no reason to fail."""
    from nas.report import write_report

    try:
        write_report(run)
    except NasError as error:
        terminal.note(f"no report: {error}")


def _chosen(known: list[float], asked: float | None) -> float:
    """The eps that is asked for, which the run must have; else the run's first."""
    if asked is not None and asked not in known:
        raise InputError(f"the run has no eps {exact(asked)}; it has: {', '.join(map(exact, known))}")
    return known[0] if asked is None else asked


def _check_said(run: Path, choice: list[float], untrusted: Path | None) -> None:
    """Asks at once for all that must be said: which eps, if there is a choice, and the trust in the file of the run's space."""
    lacking = [f"has several eps, {', '.join(map(exact, choice))}; choose one with --eps"] if choice else []
    if untrusted is not None:  # the run may come from somebody else
        lacking.append(f"names the Python file of its space, '{untrusted}'; give --trust to run that file")
    if lacking:
        raise InputError(f"run '{run}' {', and '.join(lacking)}")


def _show(result: dict[str, Any], metrics: list[str], quiet: bool) -> None:
    title = f"recalibrated candidates, cheapest first; the last one is within eps {result['eps']:g}"
    shown = Table(*metrics, "L before", "L", "held-out L", title=title, title_justify="left", box=SIMPLE_HEAD)
    for row in result["tried"]:
        before, after, heldout = ("-" if row[key] is None else f"{row[key]:.3g}" for key in ("divergence_before", "divergence", "heldout_divergence"))
        shown.add_row(*(amount(row[metric]) for metric in metrics), before, after, heldout)
    out.print(shown)
    spent = result["spent"]
    out.print(
        f"{spent['n_trials']} trials of the search that went on, {spent['n_measured']} of them in no cache; "
        f"{spent['n_recalibrated']} candidates recalibrated; {spent['seconds']:.0f} s"
    )
    print_legend("L", "held-out L", quiet=quiet)
    out.print(f"saved in {result['path']}", soft_wrap=True)
