"""The report as one HTML page: what there is, and in words what is missing."""

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

import nas
from nas.amounts import legend
from nas.findings import Findings, Found
from nas.report import figures, tables
from nas.report.forecast import Forecast
from nas.report.interactions import heat_map, interactions
from nas.report.stagemap import draw, feeding_all


def render(findings: Findings, forecast: Forecast | None = None) -> str:
    """The page; with a forecast also what a model says of designs and swaps that were not measured."""
    charts = [figures.front(findings, forecast), figures.convergence(findings), figures.predicted(findings), figures.calibration(findings)]
    return _template().render(
        findings=findings,
        version=nas.__version__,
        style=Markup(_asset("report.css")),  # ours
        script=Markup(_asset("report.js")),  # ours
        headlines=[
            *(tables.headline(findings, winner) for winner in findings.winners),
            *(tables.cascade_headline(findings, row) for row in findings.cascades),
        ],
        levels=tables.level_table(findings),
        charts=[chart for chart in charts if chart is not None],
        winners=[_detail(findings, winner, forecast) for winner in findings.winners if winner.trial is not None],
        cost=tables.search_cost(findings),
        trials=tables.trial_rows(findings),
        config=[(section, list(values.items())) for section, values in findings.config.items() if isinstance(values, Mapping)],
        legend=tuple(legend(str((findings.facts.get("table") or {}).get("divergence", ""))).items()),
    )


def _detail(findings: Findings, winner: Found, forecast: Forecast | None) -> dict[str, Any]:
    """What stands below the charts for one eps."""
    assert winner.trial is not None
    problem, candidate, flow = findings.problem, winner.trial.candidate, findings.facts.get("flow")
    detail = {"eps": winner.eps, "feasible": winner.feasible, "near": tables.nearly_won(findings, winner)}
    if problem is None:
        return {**detail, "map": None, "left_out": (), "stages": [], "heat": None}
    return {
        **detail,
        "map": draw(problem, candidate, flow, f"eps {winner.eps:g}"),
        "left_out": feeding_all(problem, flow),
        "stages": tables.stage_rows(problem, winner.trial, forecast),
        "heat": heat_map(interactions(problem, candidate, forecast), winner.eps) if forecast else None,
    }


def _asset(name: str) -> str:
    return (files("nas.report") / name).read_text(encoding="utf-8")


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(_asset("report.html"))
