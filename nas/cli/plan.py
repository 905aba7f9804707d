"""`nas plan`: what a search would do and take, before any of it is done; and the latency of blocks on the device."""

from typing import Annotated, Any

import typer
from rich.table import Table

from nas.amounts import amount, worth_showing
from nas.cli import options
from nas.cli.console import Terminal, err, out, print_json
from nas.errors import InputError


def plan(
    space: options.SpaceName = "tocsr_unet",
    eps: Annotated[list[float] | None, typer.Option("--eps", help="Bound on the divergence; several allowed; 0.005 by default.")] = None,
    teacher: options.Teacher = None,
    library: options.Library = None,
    data: options.Pictures = None,
    minimize: Annotated[str | None, typer.Option("--minimize", help="Cost to minimise: params (the default), macs, latency_ms, memory_mb, ...")] = None,
    where: Annotated[list[str] | None, typer.Option("--where", help="Bound on a known cost, such as 'macs<=75%'; several allowed.")] = None,
    trials: Annotated[int, typer.Option("--trials", help="Measurements at most.")] = 60,
    measure_latency: Annotated[bool, typer.Option("--measure-latency", help="Time every block here and keep the table for latency_ms.")] = False,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Samples of a timed call.")] = 1,
    device: options.Device = None,
    threads: options.Threads = None,
    workers: options.Workers = 1,
    json: options.Json = False,
    quiet: options.Quiet = False,
    _: options.Config = None,
) -> None:
    """Say what a search would take: costs in reach, whether all bounds can hold, blocks to calibrate, time, memory, disk."""
    from nas.job import SearchOptions
    from nas.names import resolve_space
    from nas.plan import plan as make_plan
    from nas.protocols import HasLatency

    asked = SearchOptions(tuple(eps or (0.005,)), trials=trials, minimize=minimize, where=tuple(where or ()))
    options.set_threads(threads)
    source = resolve_space(space, **options.space_options(teacher, library, data, device))
    latency = None
    if measure_latency:
        if not isinstance(source, HasLatency):
            raise InputError(f"space '{space}' runs no network here, so there is no latency to measure")
        latency = source.measure_latency(Terminal(quiet), batch)
    planned = make_plan(source, asked, workers) | {"latency": latency}
    if json:
        print_json(planned)
    else:
        _show(planned, quiet)
    if not planned["satisfiable"]:
        raise InputError(planned["why"])


def _show(planned: dict[str, Any], quiet: bool) -> None:
    shown = Table("cost", "least", "teacher", "most", "bound")
    reach = [{metric: row[key] for metric, row in planned["costs"].items()} for key in ("least", "teacher", "most", "bound")]
    for metric in worth_showing(planned["costs"], reach):
        row = planned["costs"][metric]
        shown.add_row(metric, *("-" if row[key] is None else amount(row[key]) for key in ("least", "teacher", "most", "bound")))
    out.print(shown)
    for note in () if quiet else planned["notes"]:
        err.print(note)
    if planned["least_objective"] is not None:
        out.print(f"least {planned['objective']} within the bounds: {amount(planned['least_objective'])} of {planned['n_candidates']:,} candidates")
    if planned["latency"]:
        _show_latency(planned["latency"])
    forecast = planned["forecast"]
    if forecast is None:
        return
    samples = ", ".join(f"{count} to {name}" for name, count in forecast["samples"].items())
    out.print(f"blocks: {forecast['blocks']}, {forecast['missing']} to calibrate; samples: {samples}; {planned['trials']} measurements at most")
    out.print(
        f"time at the pace of this probe, if every block takes all its steps: calibrate {forecast['calibrate_s']:.0f} s, "
        f"measure {forecast['measure_s']:.2g} s a candidate; "
        f"{forecast['total_s']:.0f} s in all with {planned['workers']} worker{'s' * (planned['workers'] > 1)}, proposals apart"
    )
    weights, features, activation, disk = (amount(forecast[name] * 1e6) + "B" for name in ("weights_mb", "features_mb", "activation_mb", "disk_mb"))
    out.print(f"memory: weights {weights}, features {features}, one forward pass {activation}; disk: {disk} of {amount(planned['disk_free_mb'] * 1e6)}B free")


def _show_latency(latency: dict[str, Any]) -> None:
    setting = latency["setting"]
    out.print(
        f"latency measured on {setting['device']}, {setting['dtype']}, batch {setting['batch']}, {setting['threads']} threads, {setting['clock']} clock: "
        f"teacher {latency['teacher_ms']:.3g} ms, of which {latency['overhead']:.2g} ms to start and wait"
    )
    out.print(
        f"{latency['n_checked']} random candidates: the table's sums are off by {100 * latency['median_error']:.1f} % (median), "
        f"{100 * latency['largest_error']:.1f} % at most"
    )
