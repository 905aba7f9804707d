"""The network as a drawing: its steps in the order of data flow, each stage coloured by what its choice saves, skips shown.

A graph with long skips is laid out as a U (each step as deep as it is far from the nearer end), others as a row.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import networkx as nx
from markupsafe import Markup, escape

from nas.problem import Problem
from nas.space import Candidate

LEAST = 0.58
"""A drawing is not shown smaller than this share of its size; a page that is narrower scrolls it."""
BOX_W, BOX_H, GAP_X, GAP_Y = 124, 72, 18, 18
NARROW = 0.62
"""Width of a column where each box stands in another row than those in the columns beside it: a wide U fits on a narrow page."""
LINE, STAGE = 20, ' class="stage"'
EVERYWHERE = 0.6
"""A fixed step that feeds this share of the others (a time embedding) is named in the caption instead of drawn."""


@dataclass(frozen=True)
class Layout:
    """Positions (column, row) of steps, edges between them, and the steps that feed almost all others."""

    at: Mapping[str, tuple[float, float]]
    edges: tuple[tuple[str, str], ...]
    everywhere: tuple[str, ...]


def flow_graph(flow: Mapping[str, Any] | None, problem: Problem) -> "nx.DiGraph[str]":
    """The recorded data flow; without one, the stages in a row without edges."""
    graph: nx.DiGraph[str] = nx.DiGraph()
    stages = [stage.name for stage in problem.space.stages]
    graph.add_nodes_from((flow or {}).get("steps", stages))
    graph.add_edges_from((a, b) for a, b, _ in (flow or {}).get("edges", []))
    return graph if set(stages) <= set(graph) and nx.is_directed_acyclic_graph(graph) else flow_graph(None, problem)


def layout(graph: "nx.DiGraph[str]", stages: frozenset[str]) -> Layout:
    """Columns by topological generation, rows by depth in the U and place within the generation."""
    others = max(len(graph) - 1, 1)
    everywhere = tuple(n for n in graph if n not in stages and len(graph) > 3 and graph.out_degree(n) >= EVERYWHERE * others)
    drawn = graph.subgraph([n for n in graph if n not in everywhere])
    generations = list(nx.topological_generations(drawn)) if drawn.number_of_edges() else [[n] for n in drawn]
    column = {name: c for c, names in enumerate(generations) for name in names}
    has_skips = any(column[b] - column[a] > 1 for a, b in drawn.edges)
    depth = {c: min(c, len(generations) - 1 - c) if has_skips else 0 for c in range(len(generations))}
    at = {name: (float(c), depth[c] + 0.9 * i) for c, names in enumerate(generations) for i, name in enumerate(names)}
    apart = all(abs(at[a][1] - at[b][1]) >= 1 for left, right in itertools.pairwise(generations) for a in left for b in right)
    step = NARROW if has_skips and apart else 1.0
    return Layout({name: (x * step, y) for name, (x, y) in at.items()}, tuple(drawn.edges), everywhere)


def draw(problem: Problem, candidate: Candidate, flow: Mapping[str, Any] | None, label: str) -> Markup:
    """The drawing of one candidate as SVG."""
    names = problem.space.decode(candidate)
    placed = layout(flow_graph(flow, problem), frozenset(names))
    columns = 1 + max(x for x, _ in placed.at.values())
    rows = 1 + max(y for _, y in placed.at.values())
    width, height = columns * (BOX_W + GAP_X) + GAP_X, rows * (BOX_H + GAP_Y) + GAP_Y
    edges = "".join(_edge(placed.at[a], placed.at[b]) for a, b in placed.edges)
    boxes = "".join(_box(problem, candidate, names, step, place) for step, place in placed.at.items())
    words = f"{label}: " + ", ".join(f"{stage} {choice}" for stage, choice in names.items())
    size = f'viewBox="0 0 {width:.0f} {height:.0f}" style="min-width:{width * LEAST:.0f}px"'
    return Markup(f'<svg class="map" {size} role="img" aria-label="{escape(words)}">{edges}{boxes}</svg>')  # all texts are escaped


def feeding_all(problem: Problem, flow: Mapping[str, Any] | None) -> tuple[str, ...]:
    """The fixed steps that the drawing leaves out because they feed almost every other one."""
    return layout(flow_graph(flow, problem), frozenset(stage.name for stage in problem.space.stages)).everywhere


def saving_class(share: float) -> str:
    """One of six steps from s0 (kept whole) to s5 (almost nothing left), for the share of the teacher's cost that is left.

    >>> saving_class(1.0), saving_class(0.5), saving_class(0.01)
    ('s0', 's2', 's5')
    """
    return f"s{sum(share <= limit for limit in (0.9, 0.6, 0.35, 0.15, 0.05))}"


def _edge(a: tuple[float, float], b: tuple[float, float]) -> str:
    (x0, y0), (x1, y1) = _centre(a), _centre(b)
    far = b[0] - a[0] > 1
    start, end = x0 + BOX_W / 2, x1 - BOX_W / 2
    if far and abs(y0 - y1) < BOX_H * 2:
        return f'<path class="flow skip" d="M{start:.0f} {y0:.0f}L{end:.0f} {y1:.0f}"/>'
    if end <= start:
        return f'<path class="flow" d="M{x0:.0f} {y0:.0f}L{x1:.0f} {y1:.0f}"/>'
    bend = (end - start) / 2
    return f'<path class="flow{" skip" if far else ""}" d="M{start:.0f} {y0:.0f}C{start + bend:.0f} {y0:.0f} {end - bend:.0f} {y1:.0f} {end:.0f} {y1:.0f}"/>'


def _box(problem: Problem, candidate: Candidate, names: Mapping[str, str], step: str, place: tuple[float, float]) -> str:
    x, y = _centre(place)
    corner = f'x="{x - BOX_W / 2:.0f}" y="{y - BOX_H / 2:.0f}" width="{BOX_W}" height="{BOX_H}" rx="7"'
    if step not in names:
        return f'<g class="box fixed"><rect {corner}/><text x="{x:.0f}" y="{y + 4:.0f}">{escape(_short(step))}</text></g>'
    s = list(names).index(step)
    costs = problem.costs.by_choice[problem.objective][s]
    share = float(costs[candidate[s]] / costs[0]) if costs[0] else 1.0
    lines = [_short(step), _short(names[step]), *([f"{100 * share:.0f} %"] if candidate[s] else [])]
    title = f"{step}: {names[step]}, {100 * share:.1f} % of the teacher's {problem.objective}"
    words = "".join(
        f'<text{"" if k else STAGE} x="{x:.0f}" y="{y + LINE * (k + 0.8 - len(lines) / 2):.0f}">{escape(text)}</text>' for k, text in enumerate(lines)
    )
    return f'<g class="box {saving_class(share)}"><title>{escape(title)}</title><rect {corner}/>{words}</g>'


def _centre(place: tuple[float, float]) -> tuple[float, float]:
    return GAP_X + BOX_W / 2 + place[0] * (BOX_W + GAP_X), GAP_Y + BOX_H / 2 + place[1] * (BOX_H + GAP_Y)


def _short(text: str, most: int = 12) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
