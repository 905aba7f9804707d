"""The space at SD1.5's true size with 16 latent channels, counted without weights: everything runs on the meta device.

Setting of every number: latents of 64x64 (512 px), 77 text tokens, batch 1; one multiply-add = 1.
"""

import contextlib
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import UNet2DConditionModel
from numpy.typing import NDArray
from torch import nn

from nas.errors import DamagedFile
from nas.evaluators.costs import count_costs, count_params
from nas.files import Form, read_json, write_whole
from nas.graph import StageGraph
from nas.home import nas_home
from nas.problem import CostTable
from nas.space import Stage
from nas.spaces.tocsr.library import LIBRARY_VERSION, library, nanosd_graph
from nas.spaces.tocsr.unet import example_inputs, unet_graph

SCALE = "sd15"
METRICS = ("params", "params_without_groupnorm", "macs", "macs_with_attention")

PAPER_SIZES = (130_000_000, 146_000_000, 161_000_000, 173_000_000)
"""Parameters of the four winners in Table S6 of [TOC-SR]."""

_COSTS: Form = dict.fromkeys(METRICS, int)
_TABLE: Form = {
    "scale": str, "library": str, "stages": [{"name": str, "choices": [{"name": str, **_COSTS}]}], "fixed": _COSTS, "teacher": _COSTS,
    "n_candidates": int, "reach": {str: [int]}, "near": {str: int},
}  # fmt: skip

NEAR = 1_000_000
"""A candidate is near a size when it differs by at most so many parameters."""


def sd15_unet(channels: int = 16) -> UNet2DConditionModel:
    """SD1.5's U-Net on the meta device; 16 latent channels are variant v2 of Table S4."""
    with torch.device("meta"):
        return UNet2DConditionModel(sample_size=64, in_channels=channels, out_channels=channels, cross_attention_dim=768)


def count_params_without_groupnorm(module: nn.Module) -> int:
    """All parameters but those of group normalisation, as Table S4 of [TOC-SR] counts."""
    norms = [part for part in module.modules() if isinstance(part, nn.GroupNorm)]
    return count_params(module) - sum(map(count_params, norms))


def full_size_costs(name: str = "default") -> tuple[tuple[Stage, ...], CostTable]:
    """Stages and cost table of a library at SD1.5's size; "nanosd" stands on its own reduced network."""
    unet = sd15_unet()
    graph: StageGraph = nanosd_graph(unet_graph(unet)) if name == "nanosd" else unet_graph(unet)
    stages = library(graph, name)
    blocks = {(stage.name, c.name): c.recipe.build(graph[stage.name].module) for stage in stages for c in stage.choices if c.recipe is not None}
    table = count_costs(graph, stages, blocks, example_inputs(unet, 64), extra={"params_without_groupnorm": count_params_without_groupnorm})
    return stages, table


def full_size_table(name: str = "default", cache: Path | None = None) -> dict[str, Any]:
    """The stage x choice table of a library at SD1.5's size, with reachable ranges and how many candidates the paper's sizes have.

    Args:
        name: "default", "wide" or "nanosd".
        cache: where counted tables are kept; None is `$NAS_HOME`.

    Returns:
        JSON values: scale, library, stages, fixed, teacher, n_candidates, reach (metric -> least and largest), near (how many
        candidates lie within 1 M of each of the paper's sizes).
    """
    path = (cache or nas_home()) / f"{SCALE}-{name}-{_key()}.json"
    with contextlib.suppress(DamagedFile):  # absent or damaged: it is counted again
        kept: dict[str, Any] = read_json(path, _TABLE)
        return kept
    table = _count(name)
    _write(path, table)
    return table


def count_near(costs: Sequence[NDArray[np.int64]], low: int, high: int) -> int:
    """How many ways to pick one number a row have a sum in `[low, high]`; exact, by meeting in the middle."""
    half = len(costs) // 2
    left, right = _sums(costs[:half]), np.sort(_sums(costs[half:]))
    return int((np.searchsorted(right, high - left, "right") - np.searchsorted(right, low - left, "left")).sum())


def _sums(rows: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    total = np.zeros(1, dtype=np.int64)
    for row in rows:
        total = (total[:, None] + row[None]).ravel()
    return total


def _count(name: str) -> dict[str, Any]:
    stages, table = full_size_costs(name)
    rows = []
    for s, stage in enumerate(stages):
        rows.append({"name": stage.name, "choices": [{"name": c.name, **_entry(table, s, k)} for k, c in enumerate(stage.choices)]})
    teacher = table.of((0,) * len(stages))
    params = [table.by_choice["params"][s][: len(stage.choices)].astype(np.int64) for s, stage in enumerate(stages)]
    fixed = int(table.fixed["params"])
    return {
        "scale": SCALE,
        "library": name,
        "stages": rows,
        "fixed": {metric: int(table.fixed[metric]) for metric in METRICS},
        "teacher": {metric: int(teacher[metric]) for metric in METRICS},
        "n_candidates": int(np.prod([len(stage.choices) for stage in stages])),
        "reach": {metric: [int(value) for value in table.reach(metric)] for metric in METRICS},
        "near": {f"{size // 1_000_000}M": count_near(params, size - NEAR - fixed, size + NEAR - fixed) for size in PAPER_SIZES},
    }


def _entry(table: CostTable, s: int, k: int) -> dict[str, int]:
    return {metric: int(table.by_choice[metric][s, k]) for metric in METRICS}


def _key() -> str:
    """Changes with whatever may change a count."""
    return hashlib.sha256("|".join((LIBRARY_VERSION, torch.__version__, diffusers.__version__)).encode()).hexdigest()[:12]


def _write(path: Path, table: dict[str, Any]) -> None:
    """Writes the file whole or not at all; a folder that cannot be written costs the next caller a few seconds, no more."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(table).encode())
