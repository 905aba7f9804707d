"""What do a measurement and the calibration of a stage cost at SD1.5's true size on a GPU, in fp32 and in bf16?

SD1.5's U-Net (16 channels) with random weights, latents of 64 x 64, 77 tokens. Measured: seconds a sample and peak memory of the teacher's pass and of
candidates near 130 M and 173 M with a block of the default library at every stage; then the calibration of `--blocks` for `--steps` steps on `--samples`
samples of features: seconds a step, the error before and after (of a random teacher: it only shows that the fit works).

    python benchmarks/full_size_gpu.py [--device cuda] [--precisions fp32 bf16] [--steps 100] [--samples 64] [--latent 64] [--out FOLDER]
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from dated import FOLDER, write_result
from diffusers import UNet2DConditionModel
from full_size import candidate_near
from torch import Tensor, nn

from nas.blocks.calibration import CalibrationSettings, calibrate_block
from nas.blocks.features import collect_features
from nas.data import Samples
from nas.graph import StageGraph
from nas.progress import Quiet
from nas.spaces.tocsr.compact import CompactUNet
from nas.spaces.tocsr.library import library
from nas.spaces.tocsr.recipes import StageRecipe
from nas.spaces.tocsr.unet import unet_graph

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def network(device: str, dtype: torch.dtype) -> CompactUNet:
    """SD1.5's U-Net with weights drawn as diffusers does."""
    torch.manual_seed(0)
    with torch.device(device):
        unet = UNet2DConditionModel(sample_size=64, in_channels=16, out_channels=16, cross_attention_dim=768)
    return CompactUNet.of(unet.to(dtype).eval().requires_grad_(False))


def inputs(n: int, latent: int, device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """`n` samples of noise."""
    random = torch.Generator().manual_seed(1)
    values = {"sample": torch.randn(n, 16, latent, latent, generator=random), "text": torch.randn(n, 77, 768, generator=random)}
    return {name: value.to(device, dtype) for name, value in values.items()} | {"timestep": torch.randint(1000, (n,), generator=random).to(device)}


def timed(call: Callable[[], Any], device: str, repeats: int) -> dict[str, float]:
    """Median seconds of a call after a first one, and the peak of GPU memory during them (with all that was there before)."""
    seconds = []
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    for _ in range(repeats + 1):
        if cuda:
            torch.cuda.synchronize()
        begun = time.perf_counter()
        call()
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun)
    return {"seconds": sorted(seconds[1:])[repeats // 2], "first_seconds": seconds[0], "peak_gb": torch.cuda.max_memory_allocated() / 1e9 if cuda else 0.0}


def candidates(graph: StageGraph, batch: dict[str, Tensor], device: str) -> dict[str, Any]:
    """Passes of the teacher and of candidates."""
    found = {}
    for size in (None, 130, 173):
        blocks: dict[str, nn.Module] = {}
        if size is not None:
            chosen = candidate_near(size * 1_000_000)
            for stage in library(graph):
                recipe = stage.choices[stage.index(chosen[stage.name])].recipe
                assert recipe is not None
                blocks[stage.name] = recipe.build(graph[stage.name].module).to(batch["sample"]).eval().requires_grad_(False)
        with torch.no_grad():
            found["teacher" if size is None else f"{size}M"] = timed(lambda blocks=blocks: graph.run(batch, blocks), device, 5)
    return found


def calibration(graph: StageGraph, stage: str, layers: str, asked: argparse.Namespace, dtype: torch.dtype) -> dict[str, Any]:
    """A block fitted to the stage's features."""
    samples = Samples(inputs(asked.samples, asked.latent, asked.device, dtype), torch.arange(asked.samples))
    begun = time.perf_counter()
    features = collect_features(graph, [stage], samples, Quiet(), batch_size=8)[stage]
    collected = time.perf_counter() - begun
    block = StageRecipe((layers,)).build(graph[stage].module).to(asked.device)
    begun = time.perf_counter()
    untrained, _ = calibrate_block(block, features, CalibrationSettings(max_steps=0, batch_size=8, finish=False))
    errors, steps = calibrate_block(block, features, CalibrationSettings(max_steps=asked.steps, batch_size=8, patience=100, lr=1e-3))
    return {
        "stage": stage, "block": layers, "params": sum(p.numel() for p in block.parameters()), "block_dtype": str(next(block.parameters()).dtype),
        "features_s": collected, "fit_s": time.perf_counter() - begun, "steps": steps, "errors_before": untrained, "errors": errors,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--precisions", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--latent", type=int, default=64)
    parser.add_argument("--blocks", nargs="+", default=["down1=R", "mid=R"], help="STAGE=LAYERS")
    parser.add_argument("--out", type=Path, default=FOLDER)
    asked = parser.parse_args()
    found: dict[str, Any] = {}
    for precision in asked.precisions:
        dtype = DTYPES[precision]
        unet = network(asked.device, dtype)
        graph = unet_graph(unet)
        fits = [calibration(graph, *block.split("="), asked, dtype) for block in asked.blocks]
        found[precision] = {"passes": candidates(graph, inputs(asked.batch, asked.latent, asked.device, dtype), asked.device), "calibration": fits}
        print(precision, found[precision], file=sys.stderr, flush=True)
        del unet, graph
    shared = {"device": asked.device, "latent": asked.latent, "batch": asked.batch, "samples": asked.samples}
    write_result("full_size_gpu", {**shared, "precisions": found}, asked.out)


if __name__ == "__main__":
    main()
