"""Is every stage of an embedded teacher at work? The gate of docs/embedded_teacher.md, beside a randomly initialised teacher.

    python benchmarks/embedded_gate.py [--teacher embedded-tight] [--trials 240] [--out benchmarks/results]

Five questions: loss against the per-pixel Wiener denoiser by quarter of t; what replacing one stage costs, by the library's
cheapest choice and by a least-squares 1x1 projection (the plateau of calibration, in closed form); whether eps grades the
winners; the same for random weights; and samples, which `docs/embedded_teacher.md` shows.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from nas.blocks.features import StageFeatures, collect_features
from nas.data import Samples, Splits
from nas.graph import StageGraph
from nas.job import search
from nas.progress import Quiet
from nas.space import Candidate
from nas.spaces.network import NetworkSpace
from nas.spaces.tocsr.assets import EmbeddedAssets, shipped_version
from nas.spaces.tocsr.compact import CompactUNet
from nas.spaces.tocsr.data import noised
from nas.spaces.tocsr.library import library
from nas.spaces.tocsr.space import denoising_loss
from nas.spaces.tocsr.unet import unet_graph

EPS = (0.001, 0.003, 0.005, 0.007)
QUARTERS = 4
N_MEASURED, N_LOSS, N_RANDOM = 512, 2048, 2000
RIDGE = 1e-6


@dataclass(frozen=True, slots=True)
class Liveness:
    """What replacing one stage costs: divergence on `measure`, rise of the denoising loss on `verify` (same noise)."""

    stage: str
    surrogate: str
    divergence: float
    loss_rise: float


class Projection(nn.Module):
    """A stage as one 1x1 projection of all it reads: pooled or repeated to the size of each output; blind to time and text."""

    def __init__(self, features: StageFeatures) -> None:
        super().__init__()
        self.sizes = [value.shape[-1] for value in features.writes]
        self.weights = [self._fit(features, k) for k in range(len(features.writes))]

    def forward(self, h: Tensor, temb: Tensor, text: Tensor, *skips: Tensor) -> Tensor | tuple[Tensor, ...]:
        del temb, text
        written = []
        for size, weight in zip(self.sizes, self.weights, strict=True):
            x = self._inputs(h, skips, min(size, h.shape[-1]))
            y = torch.einsum("bchw,cd->bdhw", x, weight[:-1]) + weight[-1][:, None, None]
            written.append(nn.functional.interpolate(y, size=(size, size)))
        return tuple(written) if len(written) > 1 else written[0]

    def _inputs(self, h: Tensor, skips: Sequence[Tensor], size: int) -> Tensor:
        x = torch.cat([h, *(s for s in skips if s.shape[-1] == h.shape[-1])], dim=1)
        return nn.functional.avg_pool2d(x, x.shape[-1] // size) if x.shape[-1] > size else x

    def _fit(self, features: StageFeatures, k: int) -> Tensor:
        h, skips, target = features.reads[0], features.reads[3:], features.writes[k]
        if target.shape[-1] > h.shape[-1]:
            target = nn.functional.avg_pool2d(target, target.shape[-1] // h.shape[-1])
        x = self._inputs(h, skips, target.shape[-1])
        rows = torch.cat([x, torch.ones_like(x[:, :1])], 1).permute(0, 2, 3, 1).flatten(0, 2).double()
        gram = rows.T @ rows
        gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram))
        weight: Tensor = torch.linalg.solve(gram, rows.T @ target.permute(0, 2, 3, 1).flatten(0, 2).double())
        return weight.float()


def load(name: str, random: bool, n_fit: int = 768) -> tuple[CompactUNet, Splits, Samples, Tensor]:
    """Teacher (or a network of its configuration with random weights), its sets, many noisy `verify` samples, abar."""
    assets = EmbeddedAssets(name)
    unet = CompactUNet.from_teacher_folder(assets.root)
    abar: Tensor = DDPMScheduler.from_config(dict(unet.config.scheduler)).alphas_cumprod
    if random:
        torch.manual_seed(0)
        config = json.loads((assets.root / "unet/config.json").read_text(encoding="utf-8"))
        unet = CompactUNet.of(UNet2DConditionModel.from_config(config), DDPMScheduler.from_pretrained(assets.root / "scheduler").config)
    latents = assets.latents()
    sets = [noised(latents[s], abar, n, seed) for s, n, seed in (("fit", n_fit, 1), ("measure", N_MEASURED, 2), ("verify", N_MEASURED, 3))]
    return unet.eval().requires_grad_(False), Splits(*sets), noised(latents["verify"], abar, N_LOSS, 4), abar


@torch.no_grad()
def outputs(graph: StageGraph, samples: Samples, blocks: dict[str, nn.Module] | None = None) -> Tensor:
    """The noise prediction on all samples, `(n, 16, h, w)`."""
    return torch.cat([graph.run(chunk.inputs, blocks) for chunk in samples.chunks(64)])


def quarters(graph: StageGraph, samples: Samples, abar: Tensor) -> dict[str, list[float]]:
    """Mean denoising loss by quarter of t, low noise first: the teacher's and the per-pixel Wiener denoiser's."""
    t, x = samples.inputs["timestep"], samples.inputs["sample"]
    assert samples.target is not None
    found = {"teacher": outputs(graph, samples), "wiener": (1 - abar[t]).sqrt().view(-1, 1, 1, 1) * x}
    quarter = t * QUARTERS // len(abar)
    return {name: [float((value - samples.target).square().mean((1, 2, 3))[quarter == q].mean()) for q in range(QUARTERS)] for name, value in found.items()}


def liveness_of(graph: StageGraph, data: Splits, blocks: dict[str, tuple[str, nn.Module]]) -> list[Liveness]:
    """Liveness of each stage for the given replacement of it."""
    teacher, verified = outputs(graph, data.measure), outputs(graph, data.verify)
    base, rows = denoising_loss(verified, data.verify), []
    for stage, (name, block) in blocks.items():
        divergence = float((outputs(graph, data.measure, {stage: block}) - teacher).square().mean())
        rise = denoising_loss(outputs(graph, data.verify, {stage: block}), data.verify) - base
        rows.append(Liveness(stage, name, divergence, rise))
    return rows


def alive(rows: Sequence[Liveness]) -> dict[str, int]:
    """How many stages pass each of the gate's thresholds."""
    return {
        "L >= 1e-4": sum(r.divergence >= 1e-4 for r in rows),
        "L >= 1e-3": sum(r.divergence >= 1e-3 for r in rows),
        "loss rises": sum(r.loss_rise > 0 for r in rows),
    }


def examine(name: str, random: bool, trials: int, n_fit: int) -> dict[str, Any]:
    """All figures of one teacher."""
    started = time.monotonic()
    unet, data, many, abar = load(name, random, n_fit)
    graph = unet_graph(unet)
    stages = library(graph)
    features = collect_features(graph, [s.name for s in stages], data.fit, Quiet())
    projections: dict[str, tuple[str, nn.Module]] = {s.name: ("1x1 least squares", Projection(features[s.name])) for s in stages}
    measured = Splits(data.fit, data.measure.rows(slice(0, 128)), data.verify.rows(slice(0, 128)))
    space = NetworkSpace("tocsr_unet", graph, stages, measured, loss=denoising_loss)
    at = time.monotonic()
    task = space.prepare(Quiet())
    calibrating = time.monotonic() - at
    cheapest: dict[str, tuple[str, nn.Module]] = {}
    for s, stage in enumerate(task.space.stages):
        k = int(np.nanargmin(task.costs.by_choice["params"][s]))
        candidate = tuple(k if i == s else 0 for i in range(len(task.space.stages)))
        modules = task.evaluator.modules(candidate)  # type: ignore[attr-defined]  # a DivergenceEvaluator
        position = [step.name for step in graph.steps].index(stage.name)
        cheapest[stage.name] = (stage.choices[k].name, modules[position])
    rows = {"library": liveness_of(graph, data, cheapest), "projection": liveness_of(graph, data, projections)}
    return {
        "random_weights": random,
        "loss_by_quarter": quarters(graph, many, abar),
        "liveness": {key: [[r.stage, r.surrogate, r.divergence, r.loss_rise] for r in value] for key, value in rows.items()},
        "alive": {key: alive(value) for key, value in rows.items()},
        "teacher_params": int(task.costs.totals([task.space.teacher])[0]),
        "grid": grid(space, trials),
        "random_feasible_at_0.005": random_feasible(task, 0.005),
        "seconds": {"calibration": round(calibrating, 1), "total": round(time.monotonic() - started, 1)},
    }


def grid(space: NetworkSpace, trials: int) -> list[dict[str, Any]]:
    """The winner of each eps: parameters, divergence, held-out divergence, and its choices that are neither teacher nor cheapest."""
    result = search(space, EPS, workdir=None, trials=trials, seed=0).to_json()
    last = {stage.name: stage.choices[-1].name for stage in space.stages}
    for winner in result["winners"]:
        chosen = winner["candidate"] or {}
        winner["mixed_stages"] = sum(choice not in ("teacher", last[stage]) for stage, choice in chosen.items())
    return list(result["winners"])


def random_feasible(task: Any, eps: float) -> float:
    """Share of uniform random candidates whose divergence is at most `eps`."""
    rng = np.random.default_rng(0)
    candidates: list[Candidate] = [tuple(int(rng.integers(size)) for size in task.space.sizes) for _ in range(N_RANDOM)]
    found = task.evaluator.measure(candidates, (eps,))
    return float(np.mean([m.divergence is not None and m.divergence <= eps for m in found]))


def main() -> None:
    """Writes `embedded_gate_<version>_<date>.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="embedded", help="embedded, embedded-tight, or a version of them")
    parser.add_argument("--trials", type=int, default=240, help="trials of the search over the eps grid")
    parser.add_argument("--fit", type=int, default=768, help="samples that blocks are calibrated on")
    parser.add_argument("--teacher-only", action="store_true", help="leave out the randomly initialised teacher")
    parser.add_argument("--record", action="store_true", help="write the number of active stages (projections, L >= 1e-4) into the manifest")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    name = shipped_version(asked.teacher)
    if name is None:
        parser.error(f"no embedded teacher '{asked.teacher}' ships")
    now = datetime.now(UTC)
    report: dict[str, Any] = {
        "version": name,
        "date": now.isoformat(timespec="seconds"),
        "machine": {"cores": asked.threads, "machine": platform.machine(), "torch": torch.__version__, "diffusers": version("diffusers")},
    }
    path = asked.out / f"embedded_gate_{name}_{now:%Y-%m-%d}.json"
    asked.out.mkdir(parents=True, exist_ok=True)
    for random in (False,) if asked.teacher_only else (False, True):
        report["random" if random else "teacher"] = examine(name, random, asked.trials, asked.fit)
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        print(json.dumps(report["random" if random else "teacher"], indent=1), flush=True)
    if asked.record:
        record_active(name, [Liveness(*row) for row in report["teacher"]["liveness"]["projection"]])


def record_active(name: str, rows: Sequence[Liveness]) -> None:
    """Writes what `nas search` prints of the teacher into its manifest."""
    assets = EmbeddedAssets(name)
    content = {**assets.manifest, "active_stages": alive(rows)["L >= 1e-4"]}
    (assets.root / "manifest.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
