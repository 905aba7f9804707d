"""`nas best`: one model from a run's winners."""

from typing import Annotated

import typer

from nas.amounts import METRICS, amount, worth_showing
from nas.cli import options
from nas.cli.console import err, out, print_json


def best(
    run: options.Run,
    target: Annotated[str | None, typer.Option("--target", help="Size to come close to, such as params=130M or macs=40%; without it the cheapest.")] = None,
    json: options.Json = False,
) -> None:
    """Choose among a run's winners, one for each eps and what `nas cascade` made of them, the one whose size is closest to a target."""
    from nas.best import Target
    from nas.best import best as choose
    from nas.cli.results import where_saved
    from nas.run_directory import RunDirectory
    from nas.summary import summarize

    directory = RunDirectory.open(run)
    with directory.record(read_only=True) as record:
        summary = summarize(directory, record)
    bounded = bool(directory.config()["search"].get("where"))
    chosen = choose(summary, Target.parse(target, summary["teacher"]) if target else None, bounded=bounded)
    if summary["stopped"] == "interrupted":
        err.print("the search is not done: these are the best candidates so far, not verified")
    if json:
        print_json(chosen)
        return
    costs = ", ".join(
        f"{METRICS.get(metric, metric)} {amount(chosen[metric])}" + (f" ({summary['teacher'][metric] / chosen[metric]:.2f}x less)" if chosen[metric] else "")
        for metric in worth_showing(summary["teacher"], (summary["teacher"], chosen))
    )
    aim = f"; {amount(abs(chosen['difference']))} {'above' if chosen['difference'] > 0 else 'below'} {target}" if target else ""
    how = ", recalibrated by `nas cascade`" if chosen.get("recalibrated") else ""
    out.print(f"eps {chosen['eps']:g}{how}: {costs}; L {chosen['divergence']:.3g}{aim}", soft_wrap=True)
    out.print("replaced: " + (", ".join(f"{s}={c}" for s, c in chosen["candidate"].items() if c != "teacher") or "nothing"), soft_wrap=True)
    if there := where_saved(chosen):
        out.print(there, soft_wrap=True)
