"""An evaluation as text, JSON, CSV or Markdown."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from nas.errors import InputError
from nas.spaces.tocsr.sr.evaluate import BICUBIC, Part, Row, gain
from nas.spaces.tocsr.sr.metrics import BORDER, METRICS
from nas.spaces.tocsr.sr.published import Published

FORMATS = ("text", "json", "csv", "markdown")


def summary(
    rows: Sequence[Row], parts: Sequence[Part], size: int, missing: Mapping[str, str], published: Sequence[Published], names: Sequence[str]
) -> dict[str, Any]:
    """The evaluation as JSON values: rows with gains over bicubic, counts, metrics that are missing and why, published rows beside it."""
    base = next((row for row in rows if row.system == BICUBIC), None)
    found = []
    for row in rows:
        entry: dict[str, Any] = {"system": row.system, **row.values, "seconds": row.seconds}
        if base is not None and row is not base and "psnr" in row.values:
            entry["psnr_gain"], entry["p"] = gain(row, base)
        found.append(entry)
    each = [{"system": row.system, "picture": name, **{m: v[k] for m, v in row.each.items() if v}} for row in rows for k, name in enumerate(names)]
    return {
        "n_pictures": len(names),
        "crop_border": BORDER,
        "rows": found,
        "pictures": each,
        "costs": {"size": size, "parts": [asdict(part) for part in parts]},
        "missing": {**missing, **{metric: why for row in rows for metric, why in row.failed.items()}},
        "published": [asdict(row) for row in published],
    }


def check_form(name: str) -> str:
    """The format itself, or an `InputError` that names those there are."""
    if name not in FORMATS:
        raise InputError(f"format must be one of {', '.join(FORMATS)}, got '{name}'")
    return name


def rendered(content: Mapping[str, Any], form: str) -> str:
    """The summary in one of `FORMATS`; CSV has the systems' rows only."""
    if form == "json":
        return json.dumps(content, indent=1)
    if form == "csv":
        return _csv(content["rows"])
    table = _text if form == "text" else _markdown
    blocks = [
        f"{content['n_pictures']} pictures, {content['crop_border']} pixels of border left out; psnr_gain: over bicubic, picture by picture; p: paired t-test",
        table(_cells(content["rows"])),
    ]
    if content["costs"]["parts"]:
        size = content["costs"]["size"]
        blocks += [f"at {size} x {size} pixels, one multiply-add = 1; macs: convolution and linear", table(_cells(content["costs"]["parts"]))]
    if content["published"]:
        blocks += ["published by the paper, not measured here", table(_cells(content["published"]))]
    blocks += [f"{name} is missing: {why}" for name, why in content["missing"].items()]
    return "\n\n".join(blocks)


def _cells(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """A header and a row each; columns that no row fills are left out."""
    columns = [name for name in dict.fromkeys(key for row in rows for key in row) if any(row.get(name) is not None for row in rows)]
    return [columns, *([_cell(name, row.get(name)) for name in columns] for row in rows)]


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    decimals = METRICS[name].decimals if name in METRICS else 2
    return f"{value:.2g}" if name in ("p", "seconds") else f"{value:.{decimals}f}"


def _text(cells: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[k]) for row in cells) for k in range(len(cells[0]))]
    return "\n".join(
        "  ".join(cell.ljust(w) if k == 0 else cell.rjust(w) for k, (cell, w) in enumerate(zip(row, widths, strict=True))).rstrip() for row in cells
    )


def _markdown(cells: Sequence[Sequence[str]]) -> str:
    header, *body = cells
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *body))


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().rstrip("\n")
