"""`nas explain`: why a run's winner is what it is."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from nas.amounts import amount, at_least, exact
from nas.cli import options
from nas.cli.console import err, out, print_json
from nas.errors import InputError

if TYPE_CHECKING:
    from nas.explain import Bounded, Explanation, Neighbour, OtherBound, OtherEps
    from nas.report.interactions import Cell, HeatMap

SHOWN = 12
PAIRS = 3


def explain(
    run: options.Run,
    eps: Annotated[float | None, typer.Option("--eps", help="Which eps, when the run has several.")] = None,
    json: options.Json = False,
) -> None:
    """Explain a run's winners: neighbours, what holds them back, other eps, what each stage trades, which new block would pay.

    Works on what the run recorded: what was measured is marked so, the rest is predicted by a model fitted to its trials.
    """
    options.set_threads(1)
    from nas.explain import explain as explain_run
    from nas.findings import read_run
    from nas.report.forecast import forecast
    from nas.run_directory import RunDirectory

    RunDirectory.open(run, to_repair=True)  # a run without any record has nothing to explain
    findings = read_run(run)
    if eps is not None and eps not in findings.eps:
        raise InputError(f"run '{run}' has no eps {exact(eps)}; it has: {', '.join(map(exact, findings.eps))}")
    found = [e for e in explain_run(findings, forecast(findings)) if eps is None or e.eps == eps]
    if json:
        print_json([explanation.to_json() for explanation in found])
        return
    for explanation in found:
        _print(explanation)


def _print(e: "Explanation") -> None:
    for note in e.notes:
        err.print(note)
    share = f" ({100 * e.cost / e.teacher_cost:.1f} % of the teacher's)" if e.teacher_cost else ""
    out.print(Text.assemble((f"eps {e.eps:g}", "bold"), f": {e.objective} {amount(e.cost)}{share}, L {e.divergence:.3g} ± {e.stderr:.1g}"))
    out.print("replaced: " + (", ".join(f"{s}={c}" for s, c in e.candidate.items() if c != "teacher") or "nothing"))
    out.print()
    for bound in e.bounds:
        out.print(_held_back(bound, e), soft_wrap=True)
    _print_others(e)
    _print_new_block(e)
    out.print()
    _print_neighbours(e.neighbours, e.objective)
    _print_stages(e)
    _print_levels(e)
    _print_additivity(e)


def _what(e: "Explanation") -> str:
    """What the explained candidate is."""
    return "the winner" if e.feasible else "the least divergent candidate"


def _held_back(bound: "Bounded", e: "Explanation") -> str:
    """Whether a bound holds the candidate back, and where it stands."""
    share = f", {100 * bound.value / bound.limit:.0f} % of it" if bound.limit else ""
    stands = f"{bound.bound} ({_what(e)} has {amount(bound.value)}{share})"
    if not e.feasible and bound.value > bound.limit:
        return f"not feasible: it breaks {stands}"
    if not bound.binds:
        return f"no cheaper network one swap away breaks only {stands}"
    kept = "1 cheaper network one swap away breaks" if bound.keeps_out == 1 else f"{bound.keeps_out} cheaper networks one swap away break"
    opens = ""
    if bound.opens_at is not None and bound.saves is not None:
        opens = f"; at {at_least(bound.opens_at, 0)} the first of them comes in and saves {amount(bound.saves)} {e.objective}"
    return f"held back by {stands}: {kept} only this{opens}"


def _print_others(e: "Explanation") -> None:
    """What other limits would give."""
    for other in e.other_eps:
        if other.eps != e.eps:
            _print_other(f"{'less' if other.eps < e.eps else 'more'} eps ({other.eps:.3g})", other, e)
    for bound in e.other_bounds:
        _print_other(f"more {bound.metric} ({amount(bound.limit)})", bound, e)


def _print_other(limit: str, other: "OtherEps | OtherBound", e: "Explanation") -> None:
    if other.middle is None:
        out.print(f"with 10 % {limit}: no network is expected to be feasible")
        return
    change = f" ({100 * (other.middle / e.cost - 1):+.1f} %)" if e.cost and e.feasible else ""
    low, high = ("none" if value is None else amount(value) for value in (other.low, other.high))
    out.print(f"with 10 % {limit}: cheapest network about {amount(other.middle)} {e.objective}{change}, 90 % interval {low} to {high}")


def _print_new_block(e: "Explanation") -> None:
    if not e.new_blocks:
        return
    best = e.new_blocks[0]
    saves, harm = best.half_cost_saves, best.half_error_saves or 0.0
    how = "half as costly and as close" if saves >= harm else f"that costs the same and adds half as much to L (now {best.part})"
    unknown = ", ".join(block.stage for block in e.new_blocks if block.unknown)
    doubt = f"; what the blocks at {unknown} add to L is unknown and left out" if unknown else ""
    out.print(f"a new block would pay most at {best.stage}: one {how} saves about {amount(max(saves, harm))} {e.objective}{doubt}", soft_wrap=True)


def _print_neighbours(neighbours: "Sequence[Neighbour]", objective: str) -> None:
    cheaper = [n for n in neighbours if n.saves > 0]
    near = sorted(cheaper, key=lambda n: n.divergence.value if n.divergence else float("inf"))[:SHOWN]
    out.print(f"cheaper networks one swap away, least divergent first ({len(near)} of {len(cheaper)}; --json lists all {len(neighbours)})")
    table = Table("stage", "swap", objective, "saves", "L (~ predicted, 90 % interval)", "", box=SIMPLE_HEAD)
    for n in near:
        verdict = "breaks a bound" if not n.allowed else "rejected on held-out" if n.rejected else ""
        verdict = verdict or ("feasible" if n.feasible else "above eps" if n.divergence else "unknown")
        table.add_row(n.stage, f"{n.before} -> {n.after}", amount(n.cost), amount(n.saves), str(n.divergence or "-"), verdict)
    out.print(table)


def _print_stages(e: "Explanation") -> None:
    """The stages in the network's order."""
    out.print(f"stage by stage: what its block adds to L, what its best cheaper swap saves, and what a new block would ({e.objective})")
    table = Table("stage", "block", "adds to L", "cheaper swap", "per 0.001 L", "half cost", "half harm", box=SIMPLE_HEAD)
    blocks = {block.stage: block for block in e.new_blocks}
    for price in e.prices:
        block = blocks[price.stage]
        rate = "-" if price.cheaper is None else "free" if price.saved_per_divergence is None else amount(1e-3 * price.saved_per_divergence)
        part = "?" if block.unknown else str(block.part or "-")
        gained = "?" if block.unknown else "-" if block.half_error_saves is None else amount(block.half_error_saves)
        table.add_row(block.stage, block.choice, part, price.cheaper or "-", rate, amount(block.half_cost_saves), gained)
    out.print(table)
    out.print(
        Text(
            "adds to L: what L falls by if the stage gets the teacher's block back (- it has it, ~ predicted with a 90 % interval, ? unknown); "
            "half cost, half harm: a new block half as costly, one that adds half as much to L. "
            f"To be sure: nas measure --space ... --candidate ... with the swaps of {_what(e)} but that one",
            style="dim",
        )
    )


def _print_levels(e: "Explanation") -> None:
    """Where along the noise levels its blocks err."""
    ranges = dict.fromkeys(name for errors in e.by_level.values() for name in errors)
    if not ranges:
        return
    out.print("where its blocks err: calibration error by noise level, on samples they were not fitted to, relative to the output's variance")
    table = Table("stage", "block", *ranges, box=SIMPLE_HEAD)
    for stage, errors in e.by_level.items():
        table.add_row(stage, e.candidate[stage], *(f"{errors[name]:.3g}" if name in errors else "-" for name in ranges))
    out.print(table)


def _heat_table(heat: "HeatMap") -> Table:
    table = Table("", *heat.columns, box=SIMPLE_HEAD)
    for stage, row in heat.rows:
        table.add_row(stage, *(_heat_cell(cell) for cell in row))
    return table


def _heat_cell(cell: "Cell | None") -> Text:
    if cell is None:
        return Text()
    text = f"{'~' if cell.source == 'predicted' else ''}{cell.percent:+.1f}"
    colour = {3: "bold red", 2: "red", -2: "blue", -3: "bold blue"}.get(cell.heat, "")
    return Text(text, style=colour)


def _print_additivity(e: "Explanation") -> None:
    from nas.report.interactions import heat_map

    found = e.additivity
    if found is None:
        return
    if found.rank_correlation is not None:
        out.print(
            f"additivity: the sums of what swaps add to L alone rank {found.n_trials} measured candidates with Spearman's rho {found.rank_correlation:.2f} "
            f"(1 is the measured order; {found.n_singles_measured} of {found.n_singles} swaps measured alone, the rest predicted)",
            soft_wrap=True,
        )
    for pair in [pair for pair in found.pairs if pair.known][:PAIRS]:
        out.print(f"  {pair.first} and {pair.second} together add {pair.excess:+.2g} to the sum of their single effects ({pair.source})")
    heat = heat_map(found.pairs, e.eps)
    if heat is None:
        return
    out.print(
        f"interactions: what two swaps add to L beyond the sum of what each adds alone, in % of eps: {heat.n_known} of {heat.n_pairs} pairs are known "
        "(~ predicted; left empty where the 90 % interval holds 0 or neither swap was measured alone)",
        soft_wrap=True,
    )
    if heat.n_known:
        out.print(_heat_table(heat))
