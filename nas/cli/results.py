"""How a result is shown to people: the winners, and for each the stages beside the teacher's."""

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from nas.amounts import METRICS, amount, rounded, worth_showing
from nas.cli.console import out, print_legend

_METRICS = {**METRICS, "macs_with_attention": "+ attention"}

_STOPPED = {
    "trials": "stopped: all trials are used up; the same command with more --trials goes on",
    "proof": "stopped: nothing better is likely to be left",
    "exhausted": "stopped: every candidate is measured",
    "interrupted": "not finished",
}


_FURTHER = "; a smaller --delta (0.01 where none was given) looks further, as a run of its own"


def print_result(summary: Mapping[str, Any], table: Mapping[str, Any], quiet: bool = False) -> None:
    """The winners' table, then each winner's stages, then what the search cost; what the words mean unless `quiet`."""
    out.print(winners_table(summary))
    for winner in summary["winners"]:
        if winner["candidate"]:
            out.print()
            out.print(stages_table(winner, table, summary["objective"]))
    seconds = summary["seconds"]
    stopped = _STOPPED[summary["stopped"]]
    if summary["stopped"] == "proof" and summary.get("statements"):  # an optimizer that states what is left stops by --delta
        stopped += _FURTHER
    out.print(
        f"\n{summary['n_trials']} trials, {summary['n_measured']} measurements that no cache served (verification included); {stopped}\n"
        f"time, all sessions of this run together: calibrate {seconds['calibrate']:.0f} s, "
        f"measure {seconds['measure']:.0f} s, propose {seconds['propose']:.0f} s, total {seconds['total']:.0f} s"
    )
    words = ("expected L",) if _has_expected(table) else ()
    print_legend("L", "held-out L", "calibration error", *words, block_names=table.get("legend", ""), divergence=table.get("divergence", ""), quiet=quiet)
    for statement in summary.get("statements", ()):
        out.print(statement)
    for winner in summary["winners"]:
        for rejected in winner.get("rejected", ()):
            heldout = rejected["heldout_divergence"]
            why = "could not be measured" if heldout is None else f"{heldout:.3g} is above 1.2 eps"
            out.print(f"eps {winner['eps']:g}: a cheaper candidate was passed over, its held-out L {why}")
        if there := where_saved(winner):
            out.print(f"eps {winner['eps']:g}: {there}", soft_wrap=True)
    for row in summary.get("cascades", ()):
        out.print(f"eps {row['eps']:g}, recalibrated by `nas cascade`: saved in {row['path']}", soft_wrap=True)


def _has_expected(table: Mapping[str, Any]) -> bool:
    """Whether losses of single blocks were expected before the search."""
    return any("expected_loss" in choice for stage in table["stages"] for choice in stage["choices"])


def where_saved(winner: Mapping[str, Any]) -> str:
    """Where a winner lies or has been; empty where it was never saved."""
    if winner.get("missing"):
        return f"{winner['missing']} is missing; the same `nas search` saves it again"
    return f"saved in {winner['path']}" if winner["path"] else ""


def winners_table(summary: Mapping[str, Any]) -> Table:
    """Teacher and winners: costs, reduction of what is minimised, divergence with its error, held-out divergence."""
    found = [winner for winner in (*summary["winners"], *summary.get("cascades", ())) if winner["candidate"]]
    metrics = worth_showing(summary["teacher"], [summary["teacher"], *found])
    title = f"{summary['space']}: teacher and winners"
    relative = any(winner.get("relative_divergence") is not None for winner in summary["winners"])
    objective = summary["objective"]
    smaller = "smaller" if objective == metrics[0] else f"smaller in {_METRICS.get(objective, objective)}"
    columns = (*(_METRICS.get(m, m) for m in metrics), smaller, "L", *(("of output variance",) if relative else ()), "held-out L")
    table = Table("", *columns, title=title, title_justify="left", box=SIMPLE_HEAD)
    table.add_row("teacher", *(amount(summary["teacher"][m]) for m in metrics), "1x", "0", *(("0",) if relative else ()), "0")
    for winner in (*summary["winners"], *summary.get("cascades", ())):
        label = f"cascade {winner['eps']:g}" if winner.get("recalibrated") else f"eps {winner['eps']:g}" + ("" if winner["feasible"] else " (not feasible)")
        if not winner["candidate"]:
            table.add_row(label, *("-" for _ in metrics), "-", "-", *(("-",) if relative else ()), "-")
            continue
        ratio = summary["teacher"][objective] / max(winner[objective], 1e-12)
        heldout = winner["heldout_divergence"]
        divergence = "-" if winner["divergence"] is None else f"{winner['divergence']:.3g} ± {winner['stderr']:.1g}"
        part = winner.get("relative_divergence")
        share = ("-" if part is None else f"{100 * part:.2g} %",) if relative else ()
        table.add_row(label, *(amount(winner[m]) for m in metrics), f"{ratio:.2f}x", divergence, *share, "-" if heldout is None else f"{heldout:.3g}")
    return table


def stages_table(winner: Mapping[str, Any], table: Mapping[str, Any], metric: str) -> Table:
    """One row a stage: the chosen block, its cost beside the teacher's, its calibration error and, if known, what it was expected to cost alone."""
    told = ("calibration error", "expected L") if _has_expected(table) else ("calibration error",)
    title = f"eps {winner['eps']:g}: stage by stage"
    shown = Table("stage", "block", _METRICS.get(metric, metric), "of teacher's", *told, title=title, title_justify="left", box=SIMPLE_HEAD)
    for stage in table["stages"]:
        chosen = next(c for c in stage["choices"] if c["name"] == winner["candidate"][stage["name"]])
        teacher = stage["choices"][0]
        error = chosen["calibration_error"]
        share = f"{100 * chosen[metric] / teacher[metric]:.0f} %" if teacher[metric] else "-"
        expected = (rounded(chosen.get("expected_loss"), 3),) if len(told) > 1 else ()
        shown.add_row(stage["name"], chosen["name"], amount(chosen[metric]), share, rounded(error, 3), *expected)
    return shown
