"""`nas spaces`, `nas calibrate`, `nas measure`: a space, its blocks, and single candidates."""

import os
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from nas.amounts import METRICS, amount, rounded, worth_showing
from nas.cli import options
from nas.cli.console import Terminal, err, out, print_json, print_legend, print_names
from nas.cli.listing import Listing
from nas.errors import InputError

spaces = typer.Typer(cls=Listing, help="List spaces, or show one: `nas spaces synthetic:3`.", rich_markup_mode=None)


@spaces.command("list")
def list_spaces(json: options.Json = False) -> None:
    """List the names that --space takes."""
    from nas.names import SPACES

    print_names(SPACES, json)
    if not json:
        err.print("also: --space path/to/file.py:function for a space of your own; `nas spaces NAME` lists its blocks")


@spaces.command("show")
def show_space(
    name: Annotated[str, typer.Argument(help="What --space takes.")],
    scale: Annotated[str | None, typer.Option("--scale", help="sd15: count the full-size library without weights.")] = None,
    teacher: options.Teacher = None,
    library: options.Library = None,
    json: options.Json = False,
) -> None:
    """Show the stage x choice table of a space: parameters and MACs of every block."""
    if scale is not None:
        _show_full_size(name, scale, library or "default", json)
        return
    from nas.job import stage_table
    from nas.names import resolve_space
    from nas.problem import Problem

    options.set_threads(None)
    space = resolve_space(name, **options.space_options(teacher, library, None, None))
    costs = space.costs()
    problem = Problem(space.space, costs, (0.0,), costs.metrics[0])
    table = {**stage_table(problem), "teacher": costs.of(space.space.teacher), "n_candidates": space.space.n_candidates}
    left_out = getattr(space, "left_out", {})
    if json:
        print_json({**table, "left_out": {stage: dict(reasons) for stage, reasons in left_out.items()}})
    else:
        out.print(space_table(table))
        print_size(table)
        for line in left_out_lines(left_out):
            out.print(line, soft_wrap=True)
        for note in costs.notes:
            err.print(note)
        print_legend(block_names=getattr(space, "legend", ""))


def _show_full_size(name: str, scale: str, library: str, json: bool) -> None:
    if name != "tocsr_unet" or scale != "sd15":
        raise InputError(f"--scale counts 'tocsr_unet' at 'sd15', got '{name}' at '{scale}'")
    from nas.spaces.tocsr.counts import full_size_table

    table = full_size_table(library)
    if json:
        print_json(table)
    else:
        out.print(space_table(table))
        print_size(table)


def left_out_lines(left_out: Mapping[str, Mapping[str, str]]) -> list[str]:
    """What does not fit where and why; the stages where one recipe has one reason share a line."""
    stages: dict[tuple[str, str], list[str]] = {}
    for stage, reasons in left_out.items():
        for named in reasons.items():
            stages.setdefault(named, []).append(stage)
    return [f"left out: {choice} at {', '.join(names)}: {reason.removeprefix(f'{choice} ')}" for (choice, reason), names in sorted(stages.items())]


def print_size(table: dict[str, Any]) -> None:
    """How many candidates there are, what they reach, and how many lie near the paper's sizes where that was counted."""
    out.print(f"{table['n_candidates']:,} candidates")
    for metric, (least, most) in table.get("reach", {}).items():
        out.print(f"{metric}: {amount(least)} to {amount(most)}")
    if "near" in table:
        out.print("within 1 M parameters of " + ", ".join(f"{size}: {count:,}" for size, count in table["near"].items()))


def space_table(table: dict[str, Any]) -> Table:
    """Stage x choice with every cost, and the teacher's total."""
    counted = [key for key in table["teacher"] if isinstance(table["teacher"][key], int | float)]
    metrics = _shown_metrics(counted, table)
    shown, whole = Table("stage", "block", *metrics, "share of teacher"), table["teacher"][metrics[0]]
    for stage in table["stages"]:
        for choice in stage["choices"]:
            share = f"{100 * choice[metrics[0]] / whole:.1f} %" if whole else "-"
            shown.add_row(stage["name"], choice["name"], *(amount(choice[m]) for m in metrics), share)
        shown.add_section()
    shown.add_row("fixed", "", *(amount(table["fixed"][m]) for m in metrics), "")
    shown.add_row("teacher", "", *(amount(table["teacher"][m]) for m in metrics), "100 %")
    return shown


def _shown_metrics(metrics: Iterable[str], table: Mapping[str, Any]) -> list[str]:
    """Those of the metrics that differ somewhere in a table of stages."""
    return worth_showing(metrics, [table["teacher"], *(choice for stage in table["stages"] for choice in stage["choices"])])


def calibrate(
    space: options.SpaceName = "tocsr_unet",
    teacher: options.Teacher = None,
    library: options.Library = None,
    data: options.Pictures = None,
    device: options.Device = None,
    threads: options.Threads = None,
    workers: options.Workers = 1,
    timeout: options.TaskTimeout = 3600.0,
    executor: options.ExecutorName = "local",
    address: options.Address = None,
    max_disk: Annotated[
        str | None, typer.Option("--max-disk", help="Room for features that do not fit in memory, such as 20G; beyond it the teacher recomputes them.")
    ] = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    _: options.Config = None,
) -> None:
    """Calibrate the surrogate blocks of a space that are not in the store yet, and list all with their errors."""
    from nas.crew import Crew
    from nas.executor import calibrate_apart, prepare
    from nas.job import stage_table
    from nas.names import resolve_space

    crew, terminal = Crew(workers, executor, address, timeout, threads), Terminal(quiet)
    options.set_threads(threads if crew.alone else crew.threads_each)
    if max_disk is not None:
        from nas.blocks.features import MAX_DISK, disk_bytes

        disk_bytes(max_disk, 0.0)
        os.environ[MAX_DISK] = max_disk  # workers read it too
    chosen = options.space_options(teacher, library, data, device)
    source = resolve_space(space, **chosen)
    with crew.open(space, chosen, source.fingerprint()) as workplaces:
        left_out = calibrate_apart(source, workplaces, terminal) if workplaces else {}
    task = prepare(source, terminal, left_out)
    problem = task.problem((0.0,), task.costs.metrics[0])
    table = {**stage_table(problem), "teacher": task.costs.of(task.space.teacher)}
    if json:
        print_json(table)
        return
    metrics = _shown_metrics(task.costs.metrics, table)
    words = ("calibration error",) if task.expected_losses is None else ("calibration error", "expected L")
    shown = Table("stage", "block", *metrics, *words)
    for stage in table["stages"]:
        for choice in stage["choices"]:
            error = choice["calibration_error"]
            expected = () if task.expected_losses is None else (rounded(choice["expected_loss"], 3),)
            shown.add_row(stage["name"], choice["name"], *(amount(choice[m]) for m in metrics), rounded(error, 4), *expected)
        shown.add_section()
    out.print(shown)
    print_legend(*words, block_names=task.legend, quiet=quiet)


def measure(
    candidate: Annotated[list[str], typer.Option("--candidate", help="'stage=choice,stage=choice' or 'teacher'; unnamed stages keep the teacher.")],
    space: options.SpaceName = "tocsr_unet",
    teacher: options.Teacher = None,
    library: options.Library = None,
    data: options.Pictures = None,
    device: options.Device = None,
    numerics: options.NumericsWords = None,
    threads: options.Threads = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    _: options.Config = None,
) -> None:
    """Measure candidates on all samples: costs, divergence, held-out divergence and loss."""
    from nas.names import resolve_space

    options.set_threads(threads)
    source = resolve_space(space, **options.space_options(teacher, library, data, device, numerics))
    chosen = [source.space.parse(text) for text in candidate]  # wrong names stop here, before anything is calibrated
    task = source.prepare(Terminal(quiet))
    rows = [_measure_one(task, task.space.encode(source.space.decode(c))) for c in chosen]
    if json:
        print_json(rows)
        return
    for row in rows:
        out.print(measured_table(row, task.costs.of(task.space.teacher)))
    print_legend("L", "held-out L", block_names=task.legend, divergence=task.divergence, quiet=quiet)


def measured_table(row: dict[str, Any], teacher: dict[str, float]) -> Table:
    """One measured candidate beside the teacher."""
    from nas.space import TEACHER

    replaced = [f"{stage}={choice}" for stage, choice in row["candidate"].items() if choice != TEACHER]
    title = ", ".join(replaced) or "the teacher, nothing replaced"
    shown = Table("", "candidate", "teacher", "smaller", title=title, title_justify="left", box=SIMPLE_HEAD)
    for metric in worth_showing(teacher, (teacher, row)):
        ratio = f"{teacher[metric] / row[metric]:.2f}x" if row[metric] else "-"
        shown.add_row(METRICS.get(metric, metric), amount(row[metric]), amount(teacher[metric]), ratio)
    if row["divergence"] is None:
        shown.add_row("L", "could not be measured", "0", "")
    else:
        shown.add_row("L", f"{row['divergence']:.3g} ± {row['stderr']:.1g} ({row['n_samples']} samples)", "0", "")
    if row["heldout_divergence"] is not None:
        shown.add_row("held-out L", f"{row['heldout_divergence']:.3g}", "0", "")
    if row["heldout_loss"] is not None:
        before = "-" if row["teacher_heldout_loss"] is None else f"{row['teacher_heldout_loss']:.4g}"
        shown.add_row("task loss, held out", f"{row['heldout_loss']:.4g}", before, "")
    return shown


def _measure_one(task: Any, candidate: tuple[int, ...]) -> dict[str, Any]:
    measured = task.evaluator.measure([candidate])[0]
    heldout = task.verifier.measure([candidate])[0] if task.verifier else None
    return {
        "candidate": task.space.decode(candidate),
        **task.costs.of(candidate),
        "divergence": measured.divergence,
        "stderr": measured.stderr,
        "n_samples": measured.n_samples,
        "relative_divergence": None if task.scale is None or measured.divergence is None else measured.divergence / task.scale,
        "heldout_divergence": heldout.divergence if heldout else None,
        "heldout_loss": task.heldout_loss(candidate) if task.heldout_loss else None,
        "teacher_heldout_loss": task.heldout_loss(task.space.teacher) if task.heldout_loss else None,
    }
