"""What a closed-form solution of the maps that a block's outputs end in does for calibration: after the fit, before it, or not at all.

Fits every block of the embedded teacher's default library each way. Held-out errors; CPU seconds of one thread.

    python benchmarks/finish.py
"""

import statistics
import time
from dataclasses import replace
from typing import Any

import torch
from dated import write_result

from nas.blocks.features import Features, collect_features, split_features
from nas.blocks.fit import calibrate_block, held_out_errors
from nas.blocks.ridge import solve_ends
from nas.progress import Quiet
from nas.space import Choice
from nas.spaces.network import NetworkSpace
from nas.spaces.tocsr.space import tocsr_unet

WAYS = ("none", "after", "before")


def fitted(network: NetworkSpace, choice: Choice, features: Features, way: str) -> tuple[float, float]:
    """Held-out error and seconds."""
    settings = replace(network.calibration, finish=way == "after")
    torch.manual_seed(settings.seed)
    assert choice.recipe is not None
    block = choice.recipe.build(features.step.module).eval().requires_grad_(True)
    started = time.thread_time()
    if way == "before":
        fit, heldout = split_features(features, settings.heldout)
        solve_ends(block, features, fit, heldout, held_out_errors(block, features, heldout), lambda: held_out_errors(block, features, heldout))
    errors, _ = calibrate_block(block, features, settings)
    return sum(errors.values()) / len(errors), time.thread_time() - started


def main() -> None:
    torch.set_num_threads(1)
    network = tocsr_unet()
    shared = collect_features(network.graph, [stage.name for stage in network.stages], network.data.fit, Quiet())
    rows: list[dict[str, Any]] = []
    for stage in network.stages:
        for choice in stage.choices[1:]:
            found = {way: fitted(network, choice, shared[stage.name], way) for way in WAYS}
            rows.append({"block": f"{stage.name}/{choice.name}", "error": {w: f[0] for w, f in found.items()}, "cpu_s": {w: f[1] for w, f in found.items()}})
            print(rows[-1], flush=True)
    ratios = {way: [row["error"][way] / row["error"]["none"] for row in rows if row["error"]["none"] > 1e-12] for way in WAYS[1:]}
    write_result(
        "finish",
        {
            "blocks": rows,
            "error against none": {
                way: {"median": statistics.median(r), "least": min(r), "most": max(r), "better": sum(x < 0.999 for x in r), "worse": sum(x > 1.001 for x in r)}
                for way, r in ratios.items()
            },
            "cpu_s": {way: sum(row["cpu_s"][way] for row in rows) for way in WAYS},
        },
    )


if __name__ == "__main__":
    main()
