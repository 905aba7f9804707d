"""What a notebook shows of a search: the winners as a table, the front as a chart."""

from markupsafe import Markup, escape

from nas.findings import Findings
from nas.report.figures import front
from nas.report.tables import cascade_headline, headline

STYLE = (
    "svg.chart .axes path{stroke:#8884;fill:none}svg.chart text{fill:currentColor;font:12px sans-serif}svg.chart .back{fill:none;stroke:#8888}"
    "svg.chart .line{fill:none;stroke:#888}svg.chart .bound{stroke-dasharray:5 4}svg.chart .mark{fill:#888}svg.chart .e0{fill:#0b5cad}"
    "svg.chart .e1{fill:#b34700}svg.chart .e2{fill:#00734f}svg.chart .winner{stroke:currentColor}svg.chart .line.e0,svg.chart .line.e1{fill:none}"
)


def snippet(findings: Findings) -> str:
    """HTML for `_repr_html_`."""
    parts = [f"<p><b>{escape(findings.space)}</b>: {len(findings.trials)} trials</p>"]
    heads = [*(headline(findings, winner) for winner in findings.winners), *(cascade_headline(findings, row) for row in findings.cascades)]
    for head in heads:
        cells = "".join(f"<tr><th>{escape(n)}</th><td>{b}</td><td><b>{a}</b></td><td>{r}</td></tr>" for n, b, a, r in head.costs)
        last = f"<tr><th>L</th><td>0</td><td><b>{escape(head.divergence)}</b></td><td></td></tr>"
        rows = f"<tr><th></th><th>teacher</th><th>found</th><th></th></tr>{cells}{last}"
        parts.append(f"<p>eps {head.eps:g}: {escape(head.title)}</p><table>{rows}</table>" if head.costs else f"<p>eps {head.eps:g}: {escape(head.title)}</p>")
    chart = front(findings, None)
    if chart is not None:
        parts.append(f'<style>{STYLE}</style><div style="max-width:520px">{chart.svg()}</div>')
    return str(Markup("").join(Markup(part) for part in parts))  # all texts are escaped
