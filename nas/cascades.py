"""What `nas cascade` left in a run: a folder for each eps, with its result beside the model."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nas.errors import DamagedFile
from nas.files import Form, read_json

CASCADE = "cascade.json"
"""Name of the file in which `nas cascade` leaves its result, beside the model."""

_COST = int | float
_CASCADE: Form = {
    "eps": _COST, "candidate": {str: str}, "divergence": _COST, "stderr?": _COST, "n_samples?": int, "divergence_before": _COST | None,
    "heldout_divergence": _COST, "trials?": int | None, "spent?": {str: _COST},
}  # fmt: skip


def cascades(folder: Path, teacher: Mapping[str, float]) -> list[dict[str, Any]]:
    """What `nas cascade` made of a run, in the order of eps, as winners are; `teacher` are the run's costs.

    Raises:
        DamagedFile: a result that cannot be read, or that has other costs than the run.
    """
    found = []
    for file in folder.glob(f"cascade-eps*/{CASCADE}"):
        row = read_cascade(file.parent, teacher)
        kept = {key: row[key] for key in ("eps", "candidate", *teacher, "divergence_before", "divergence", "heldout_divergence")}
        measured = {"stderr": row.get("stderr", 0.0), "n_samples": row.get("n_samples", 0), "spent": row.get("spent", {})}
        found.append({**kept, **measured, "feasible": True, "recalibrated": True, "path": str(file.parent)})
    return sorted(found, key=lambda row: row["eps"])


def read_cascade(folder: Path, metrics: Iterable[str] = ()) -> dict[str, Any]:
    """What `nas cascade` wrote into a folder of its own, which has these costs.

    Raises:
        DamagedFile: it cannot be read, or is something else.
    """
    try:
        row: dict[str, Any] = read_json(folder / CASCADE, {**_CASCADE, **dict.fromkeys(metrics, _COST)})
    except DamagedFile as error:
        raise DamagedFile(f"{error}; move the folder {folder.name} away, or give `nas cascade` again") from error
    return row
