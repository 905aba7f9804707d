"""What does SD1.5's true size take on a CPU: memory of teacher, candidates and one stage alone, and room of features on disk?

A checkpoint of SD1.5's U-Net (16 channels, random weights, bf16) is written once; each case is a process of its own, whose peak resident memory counts.

    teacher     the network runs once (latents of 64 x 64, 77 tokens)
    130M, 173M  the same with a block of the default library at every stage: the candidates closest to these sizes
    both        the teacher, then the candidate of 173 M, in one process: every weight of both is resident
    features    the teacher runs on a few samples, one stage's features go to disk in fp16; the size stated before beside the size there
    stage       that stage alone, read from the checkpoint, and its features: ten calibration steps of a surrogate block

    python benchmarks/full_size.py [--samples 8] [--stage down1]
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dated import write_result
from safetensors.torch import load_file, save_file
from torch import nn

from nas.blocks.calibration import CalibrationSettings, calibrate_block
from nas.blocks.features import StageFeatures, collect_features, feature_bytes
from nas.blocks.shards import Shards
from nas.data import Samples
from nas.graph import StageGraph, Step
from nas.progress import Quiet
from nas.spaces.tocsr.compact import CompactUNet
from nas.spaces.tocsr.counts import full_size_table, sd15_unet
from nas.spaces.tocsr.lazy import load_stage
from nas.spaces.tocsr.library import library
from nas.spaces.tocsr.unet import example_inputs, unet_graph

WEIGHTS = "diffusion_pytorch_model.safetensors"


def write_checkpoint(folder: Path) -> None:
    """SD1.5's U-Net with small random weights."""
    unet = sd15_unet()
    random = torch.Generator().manual_seed(0)
    state = {name: torch.rand(value.shape, generator=random).sub_(0.5).mul_(0.04).bfloat16() for name, value in unet.state_dict().items()}
    unet.save_config(folder)
    save_file(state, folder / WEIGHTS)


def teacher(folder: Path) -> CompactUNet:
    """The network of the checkpoint."""
    with torch.device("meta"):
        unet = CompactUNet.from_config(json.loads((folder / "config.json").read_text()))
    unet.load_state_dict(load_file(folder / WEIGHTS), assign=True)
    return unet.eval().requires_grad_(False)


def candidate_near(size: int) -> dict[str, str]:
    """Stage -> choice of the closest of 200,000 random candidates of the default library."""
    table = full_size_table()
    rows = [[choice["params"] for choice in stage["choices"]] for stage in table["stages"]]
    random = np.random.default_rng(0)
    picks = np.stack([random.integers(1, len(row), 200_000) for row in rows])
    total = table["fixed"]["params"] + sum(np.array(row)[pick] for row, pick in zip(rows, picks, strict=True))
    best = picks[:, np.abs(total - size).argmin()]
    return {stage["name"]: stage["choices"][k]["name"] for stage, k in zip(table["stages"], best, strict=True)}


def run(folder: Path, *sizes: str) -> dict[str, Any]:
    """Forward passes of the teacher, or of the candidates of about these sizes beside it, one after another; figures of the last."""
    unet = teacher(folder)
    graph = unet_graph(unet)
    for size in sizes:
        blocks = {} if size == "teacher" else blocks_near(graph, size)
        started = time.process_time()
        with torch.no_grad():
            graph.run(example_inputs(unet, 64), blocks)
        seconds = time.process_time() - started
    swapped = sum(p.numel() for block in blocks.values() for p in block.parameters())
    fixed = sum(p.numel() for step in graph.steps if step.name not in blocks for p in step.module.parameters())
    return {"params": swapped + fixed, "blocks": len(blocks), "cpu_s": round(seconds, 1)}


def blocks_near(graph: StageGraph, size: str) -> dict[str, nn.Module]:
    """A block for every stage, of about so many parameters in all ("130M")."""
    chosen = candidate_near(int(size.removesuffix("M")) * 1_000_000)
    blocks = {}
    for stage in library(graph):
        recipe = stage.choices[stage.index(chosen[stage.name])].recipe
        assert recipe is not None
        blocks[stage.name] = recipe.build(graph[stage.name].module)
    return blocks


def features(folder: Path, stage: str, n: int) -> dict[str, Any]:
    """Features of a stage on disk."""
    graph = unet_graph(teacher(folder))
    unet = teacher(folder)
    samples = Samples(example_inputs(unet, 64, batch=n), torch.arange(n))
    stated = feature_bytes(graph, [stage], samples, on_disk=True)[stage]
    place = folder / "features"
    place.mkdir()
    started = time.process_time()
    found = collect_features(graph, [stage], samples, Quiet(), batch_size=2, folder=place)[stage]
    there = sum(file.stat().st_size for file in place.iterdir())
    spans = {name: [value._name for value in getattr(found, name)] for name in ("reads", "writes")}  # type: ignore[union-attr]
    (folder / "spans.json").write_text(json.dumps({**spans, "step": [list(found.step.reads), list(found.step.writes)], "n": n}))
    per_sample = {
        name: size // n
        for name, size in feature_bytes(graph, [step.name for step in graph.steps if step.name[:2] in ("do", "mi", "up")], samples, on_disk=True).items()
    }
    return {
        "samples": n,
        "stated_mb": stated / 1e6,
        "on_disk_mb": there / 1e6,
        "mb_a_sample": {k: v / 1e6 for k, v in per_sample.items()},
        "cpu_s": round(time.process_time() - started, 1),
    }


def stage_alone(folder: Path, stage: str) -> dict[str, Any]:
    """Ten steps of calibration with the stage and its features only."""
    spans = json.loads((folder / "spans.json").read_text())
    module = load_stage(folder, stage)
    step = Step(stage, tuple(spans["step"][0]), tuple(spans["step"][1]), module)

    def opened(name: str) -> Shards:
        return Shards.reopen(folder / "features", name, torch.bfloat16)

    held = StageFeatures(step, tuple(map(opened, spans["reads"])), tuple(map(opened, spans["writes"])), torch.arange(spans["n"]))
    from nas.spaces.tocsr.recipes import StageRecipe

    block = StageRecipe(("R",)).build(module)
    started = time.process_time()
    errors, steps = calibrate_block(block, held, CalibrationSettings(max_steps=10, batch_size=2, check_every=5))
    return {"steps": steps, "errors": errors, "params": sum(p.numel() for p in block.parameters()), "cpu_s": round(time.process_time() - started, 1)}


def child(case: str, folder: Path, asked: argparse.Namespace) -> None:
    """One case; prints its figures and the peak of resident memory as JSON."""
    torch.set_num_threads(1)
    cases = {
        "checkpoint": lambda: write_checkpoint(folder),
        "features": lambda: features(folder, asked.stage, asked.samples),
        "stage": lambda: stage_alone(folder, asked.stage),
        "both": lambda: run(folder, "teacher", "173M"),
    }
    found = cases.get(case, lambda: run(folder, case))() or {}
    print(json.dumps({**found, "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--stage", default="down1")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        child(asked.child[0], Path(asked.child[1]), asked)
        return
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for case in ("checkpoint", "teacher", "130M", "173M", "both", "features", "stage"):
            command = [sys.executable, __file__, "--samples", str(asked.samples), "--stage", asked.stage, "--child", case, folder]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(done.stderr)
            found[case] = json.loads(done.stdout.splitlines()[-1])
            print(case, found[case], file=sys.stderr, flush=True)
    memory = {case: found[case]["peak_rss_mb"] / found["teacher"]["peak_rss_mb"] for case in ("130M", "173M", "both", "stage")}
    write_result("full_size", {"dtype": "bfloat16", "threads": 1, "cases": found, "peak_over_teacher": memory})


if __name__ == "__main__":
    main()
