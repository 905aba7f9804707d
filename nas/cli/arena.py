"""`nas compare`, `nas tabulate`, `nas optimizers`: the arena."""

from pathlib import Path
from typing import Annotated

import typer

from nas.cli import options
from nas.cli.console import Terminal, err, out, print_json, print_names
from nas.errors import InputError


def optimizers(json: options.Json = False) -> None:
    """List the names that --optimizer takes."""
    from nas.names import OPTIMIZERS

    print_names(OPTIMIZERS, json)
    if not json:
        err.print("also: path/to/file.py:Name for an optimizer of your own")


def compare(
    eps: Annotated[list[float], typer.Option("--eps", help="Bound on the divergence; several give one comparison each.")],
    space: options.SpaceName = "synthetic",
    names: Annotated[str, typer.Option("--optimizers", help="Names or path/to/file.py:NAME, separated by commas.")] = "eps_gp,additive,random",
    seeds: Annotated[int, typer.Option("--seeds", help="Independent runs of each optimizer.")] = 20,
    trials: Annotated[int, typer.Option("--trials", help="Measurements of a run at most.")] = 50,
    jobs: Annotated[int, typer.Option("--jobs", help="Processes of one thread each.")] = 1,
    minimize: options.Minimize = None,
    where: Annotated[list[str] | None, typer.Option("--where", help="Bound on a known cost; several allowed.")] = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="Write an SVG of regret over measurements, medians with quartile bands.")] = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    _: options.Config = None,
) -> None:
    """Compare optimizers on a space whose optimum is known: measurements to 1 % regret, regret, exactness, CPU time a proposal."""
    from nas.names import optimizer_factory, resolve_space

    for option, value in (("seeds", seeds), ("trials", trials), ("jobs", jobs)):
        if value < 1:
            raise InputError(f"--{option} must be at least 1, got {value}")
    factories = {name: optimizer_factory(name) for name in dict.fromkeys(part.strip() for part in names.split(",") if part.strip())}
    if not factories:
        raise InputError("--optimizers names none; `nas optimizers` lists them")
    options.set_threads(1)
    from nas.regret_plot import check_plot

    if plot is not None:
        check_plot(plot)
    from nas.bounds import check_together
    from nas.compare import check_comparable, render
    from nas.compare import compare as run_compare
    from nas.job import default_objective
    from nas.problem import Bound
    from nas.regret_plot import plot as draw

    terminal = Terminal(quiet)
    source = resolve_space(space)
    check_comparable(source)
    task = source.prepare(terminal)
    bounds = tuple(Bound.parse(text, task.costs) for text in where or ())
    check_together(bounds, task.costs)
    rows = run_compare(task, eps, factories, seeds, trials, jobs=jobs, objective=default_objective(task.costs, minimize), bounds=bounds, progress=terminal)
    if json:
        print_json([row.to_json() for row in rows])
    else:
        table = render(rows)
        table.title = f"{task.space.name}: {table.title}"
        out.print(table)
    if plot is not None:
        draw(rows, plot, task.space.name)
        terminal.note(f"plot in {plot}")


def tabulate(
    to: Annotated[Path, typer.Option("--to", help="The table file to write, FILE.npz.")],
    space: options.SpaceName = "tocsr_unet",
    teacher: options.Teacher = None,
    library: options.Library = None,
    data: options.Pictures = None,
    device: options.Device = None,
    threads: options.Threads = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    _: options.Config = None,
) -> None:
    """Measure every candidate of a small space into a table for --space table:FILE.npz; goes on where it was stopped."""
    from nas.names import resolve_space
    from nas.tabulate import check_table
    from nas.tabulate import tabulate as run_tabulate

    options.set_threads(threads)
    terminal = Terminal(quiet)
    source = resolve_space(space, **options.space_options(teacher, library, data, device))
    check_table(source.space, to)
    table = run_tabulate(source.prepare(terminal), to, terminal, fingerprint=source.fingerprint())
    if json:
        print_json({"n_candidates": int(table.divergence.size), "path": str(to)})
    else:
        out.print(f"{table.divergence.size:,} candidates in {to}", soft_wrap=True)
