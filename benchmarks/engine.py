"""How close do measuring and calibrating come to the work that must be done, and how much faster are they than the obvious loops?

On the embedded teacher, one thread, in CPU seconds of that thread (so that other users of the machine do not count), rivals interleaved:

    measuring     the evaluator's reuse of step outputs against whole forward passes of pointer-swapped candidates, same modules, batch and
                  samples, on a stretch of the exhaustive order and on random candidates; `floor` is the time inside the modules of the
                  steps that had to run
    assembling    one candidate by reference
    calibrating   the whole default library as a search calibrates it; for the same steps of the same blocks, from the time of a few steps taken in
                  turns: the naive loop with a teacher forward pass at every step, and the block's own forward and backward pass
    growth        seconds over three numbers of candidates, samples and blocks, with a picture

    python benchmarks/engine.py [--candidates 48] [--rounds 3]
"""

import argparse
import itertools
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dated import write_result
from torch import nn

from nas.blocks.features import StageFeatures, collect_features, split_features
from nas.blocks.fit import Fit, fit_together, held_out_errors, relative_errors
from nas.evaluators.divergence import DivergenceEvaluator, mean_squared_error
from nas.graph import call_step
from nas.progress import Quiet
from nas.space import Candidate, Stage
from nas.spaces.network import NetworkSpace
from nas.spaces.tocsr.space import tocsr_unet

N_SAMPLES = 24

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "engine-growth.svg"


def cpu_s(call: Callable[..., Any], *arguments: Any) -> float:
    """CPU seconds of this thread."""
    started = time.thread_time()
    call(*arguments)
    return time.thread_time() - started


class Watched(nn.Module):
    """A module that adds up the time inside it."""

    spent = 0.0

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *values: Any) -> Any:
        started = time.thread_time()
        written = self.inner(*values)
        Watched.spent += time.thread_time() - started
        return written


class Measuring:
    """The two ways to measure candidates of one space, on the same modules."""

    def __init__(self, network: NetworkSpace, n_samples: int = N_SAMPLES) -> None:
        built = network.uncalibrated()
        steps = tuple(replace_module(step, Watched(step.module)) for step in network.graph.steps)
        self.graph = replace(network.graph, steps=steps)
        self.stages = network.stages
        self.blocks = [[self.graph[s.name].module if c.recipe is None else Watched(built[s.name, c.name].eval()) for c in s.choices] for s in network.stages]
        self.samples = network.data.measure.rows(slice(0, n_samples))
        self.teacher = self.whole((0,) * len(self.stages))

    def whole(self, candidate: Candidate) -> torch.Tensor:
        """A forward pass with the candidate's modules in place."""
        chosen = {stage.name: blocks[k] for stage, blocks, k in zip(self.stages, self.blocks, candidate, strict=True)}
        with torch.no_grad():
            output: torch.Tensor = self.graph.run(self.samples.inputs, chosen)
        return output

    def by_whole_passes(self, candidates: Sequence[Candidate]) -> list[float]:
        """Divergences, one forward pass each."""
        return [float(mean_squared_error(self.teacher, self.whole(candidate)).double().mean()) for candidate in candidates]

    def by_evaluator(self, candidates: Sequence[Candidate]) -> list[float]:
        """Divergences by an evaluator that starts with nothing."""
        keys = [[str(k) for k in range(len(blocks))] for blocks in self.blocks]
        evaluator = DivergenceEvaluator(self.graph, [s.name for s in self.stages], self.blocks, keys, self.samples, identity="benchmark")
        return [float(m.divergence or 0.0) for m in evaluator.measure(candidates)]


def replace_module(step: Any, module: nn.Module) -> Any:
    return replace(step, module=module)


def measuring(network: NetworkSpace, count: int, rounds: int) -> dict[str, Any]:
    """Seconds of both ways on two lists of candidates, and the share of the floor."""
    ways = Measuring(network)
    sizes = [len(stage.choices) for stage in network.stages]
    # a stretch of the exhaustive order (last stage fastest) that turns over two stages
    exhaustive = [tuple(c) for c in itertools.islice(itertools.product(*map(range, sizes)), 7, 7 + count)]
    random = np.random.default_rng(0)
    drawn = [tuple(int(random.integers(size)) for size in sizes) for _ in range(count)]
    found: dict[str, Any] = {"samples": N_SAMPLES, "candidates": count}
    for name, candidates in (("exhaustive order", exhaustive), ("random", drawn)):
        seconds: dict[str, list[float]] = {"whole": [], "evaluator": [], "floor": []}
        for _ in range(rounds):
            seconds["whole"].append(cpu_s(ways.by_whole_passes, candidates))
            Watched.spent = 0.0
            seconds["evaluator"].append(cpu_s(ways.by_evaluator, candidates))
            seconds["floor"].append(Watched.spent)
        median = {way: statistics.median(values) for way, values in seconds.items()}
        same = np.allclose(ways.by_whole_passes(candidates), ways.by_evaluator(candidates), rtol=1e-6, atol=0)
        found[name] = {
            "seconds": seconds,
            "times faster than whole passes": median["whole"] / median["evaluator"],
            "share of the floor": median["floor"] / median["evaluator"],
            "same values": same,
        }
    candidate = drawn[0]
    keys = [["k"] * len(blocks) for blocks in ways.blocks]
    evaluator = DivergenceEvaluator(ways.graph, [s.name for s in ways.stages], ways.blocks, keys, ways.samples, identity="benchmark")
    found["assembling one candidate (ms)"] = 1000 * cpu_s(lambda: [evaluator.modules(candidate) for _ in range(1000)]) / 1000
    return found


def calibrating(network: NetworkSpace, rounds: int, whole: Sequence[str], only: Sequence[str] | None = None) -> dict[str, Any]:
    """The library by the engine, and what the naive loop and the blocks' own passes take for the same steps of the same blocks.

    With some stages `only`, their share of the one pass that collects features for all stages is counted.
    """
    settings = network.calibration
    shared: dict[str, StageFeatures] = {}
    features_s = cpu_s(lambda: shared.update(collect_features(network.graph, [stage.name for stage in network.stages], network.data.fit, Quiet())))
    stages: list[dict[str, Any]] = []
    chosen = [stage for stage in network.stages if only is None or stage.name in only]
    features_s *= len(chosen) / len(network.stages)
    for stage in chosen:
        features = shared[stage.name]
        fits = {choice.name: Fit(made(network, stage, choice.name), features.step, features.output_variances, settings) for choice in stage.choices[1:]}
        engine = cpu_s(lambda fits=fits, features=features: list(fit_together(list(fits.values()), features, settings)))
        rows = []
        for name, fit in fits.items():
            ways = {"own": own, "own with its loss": own_with_loss, "naive": naive}
            block = made(network, stage, name)
            if not any(p.requires_grad for p in block.parameters()):
                continue
            for way in ways.values():
                way(network, features, block, 1)
            times = {way: [cpu_s(call, network, features, block, 4) / 4 for _ in range(rounds)] for way, call in ways.items()}
            error = {"engine": float(fit.errors.mean())}
            if f"{stage.name}/{name}" in whole:
                block = made(network, stage, name)
                naive(network, features, block, settings.max_steps, decay=True)
                error["naive, all steps"] = float(held_out_errors(block, features, split_features(features, settings.heldout)[1]).mean())
            rows.append({"block": name, "steps": fit.steps, "error": error, **{way: fit.steps * statistics.median(values) for way, values in times.items()}})
        stages.append({"stage": stage.name, "engine": engine, "blocks": rows})
        print(stage.name, engine, {way: sum(row[way] for row in rows) for way in ("own", "own with its loss", "naive")}, flush=True)
    total = {way: sum(row[way] for one in stages for row in one["blocks"]) for way in ("own", "own with its loss", "naive")}
    engine = sum(one["engine"] for one in stages)
    return {
        "blocks": sum(len(one["blocks"]) for one in stages),
        "engine": "all blocks of a stage together, early stop, held-out errors and linear ends included; features kept in memory",
        "cpu_s": {"features once": features_s, "engine": engine, **total},
        "times faster than naive": total["naive"] / (engine + features_s),
        "times own forward and backward": engine / total["own"],
        "times own forward, loss and backward": engine / total["own with its loss"],
        "stages": stages,
    }


def made(network: NetworkSpace, stage: Stage, name: str) -> nn.Module:
    """A block as calibration starts it."""
    torch.manual_seed(network.calibration.seed)
    recipe = stage.choices[stage.index(name)].recipe
    assert recipe is not None
    return recipe.build(network.graph[stage.name].module).eval().requires_grad_(True)


def naive(network: NetworkSpace, features: StageFeatures, block: nn.Module, steps: int, *, decay: bool = False) -> None:
    """The obvious loop: every step runs the teacher on a fresh batch and fits the block to what it did there."""
    settings, step = network.calibration, features.step
    optimizer = torch.optim.Adam(block.parameters(), lr=settings.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, 0.05 * settings.lr)
    random, fit = torch.Generator().manual_seed(settings.seed), split_features(features, settings.heldout)[0]
    for _ in range(steps):
        rows = network.data.fit.rows(fit[torch.randint(len(fit), (settings.batch_size,), generator=random)])
        seen = collect_features(network.graph, [step.name], rows, Quiet())[step.name]
        optimizer.zero_grad()
        relative_errors(block, step, features.output_variances, (seen.reads, seen.writes)).mean().backward()  # type: ignore[no-untyped-call,arg-type]
        nn.utils.clip_grad_norm_(block.parameters(), 1.0)
        optimizer.step()
        if decay:
            schedule.step()


def own(network: NetworkSpace, features: StageFeatures, block: nn.Module, steps: int) -> None:
    """The block's forward and backward pass on one batch, and nothing else: the sum of its outputs is what is differentiated."""
    reads = tuple(value[: network.calibration.batch_size] for value in features.reads)
    for _ in range(steps):
        written = call_step(features.step, block, reads)
        sum(value.sum() for value in written).backward()


def own_with_loss(network: NetworkSpace, features: StageFeatures, block: nn.Module, steps: int) -> None:
    """The same with the loss that the block is fitted by."""
    batch = features.batch(torch.arange(network.calibration.batch_size))
    for _ in range(steps):
        relative_errors(block, features.step, features.output_variances, batch).mean().backward()  # type: ignore[no-untyped-call]


def growth(network: NetworkSpace, rounds: int) -> dict[str, Any]:
    """Seconds over size, three sizes each, medians of rounds; the largest deviation from the straight line through them."""
    random = np.random.default_rng(1)
    drawn = [tuple(int(random.integers(len(stage.choices))) for stage in network.stages) for _ in range(32)]
    ways = {n: Measuring(network, n) for n in (24, 32, 64, 128)}
    stage = network.stages[2]
    features = collect_features(network.graph, [stage.name], network.data.fit, Quiet())[stage.name]
    settings = replace(network.calibration, max_steps=25, finish=False)

    def calibrate(n: int) -> None:
        fits = [Fit(made(network, stage, stage.choices[1].name), features.step, features.output_variances, settings) for _ in range(n)]
        list(fit_together(fits, features, settings))

    calls: dict[str, dict[int, Callable[[], Any]]] = {
        "candidates": {n: lambda n=n: ways[24].by_evaluator(drawn[:n]) for n in (8, 16, 32)},
        "samples": {n: lambda n=n: ways[n].by_evaluator(drawn[:8]) for n in (32, 64, 128)},
        "blocks": {n: lambda n=n: calibrate(n) for n in (2, 4, 8)},
    }
    found = {}
    for name, sizes in calls.items():
        next(iter(sizes.values()))()
        seconds = {n: statistics.median(cpu_s(call) for _ in range(rounds)) for n, call in sizes.items()}
        slope, intercept = np.polyfit(list(seconds), list(seconds.values()), 1)
        off = max(abs(slope * n + intercept - s) / s for n, s in seconds.items())
        found[name] = {"cpu_s": seconds, "line": [float(slope), float(intercept)], "largest deviation from the line": float(off)}
    return found


def draw(found: dict[str, Any], path: Path) -> None:
    """The growth as an SVG picture: seconds over size, with the line through the three points."""
    panels = []
    for number, (name, one) in enumerate(found.items()):
        sizes, seconds = list(one["cpu_s"]), list(one["cpu_s"].values())
        wide, high = 1.1 * max(sizes), 1.1 * max(seconds)
        slope, intercept = one["line"]

        def at(x: float, y: float, wide: float = wide, high: float = high) -> str:
            return f"{50 + 190 * x / wide:.1f},{180 - 150 * y / high:.1f}"

        marks = [f'<circle cx="{at(x, y).split(",")[0]}" cy="{at(x, y).split(",")[1]}" r="4" fill="#0072b2"/>' for x, y in zip(sizes, seconds, strict=True)]
        ticks = [f'<text x="{at(x, 0).split(",")[0]}" y="196" text-anchor="middle">{x}</text>' for x in sizes]
        ticks += [f'<text x="44" y="{float(at(0, y).split(",")[1]) + 4:.1f}" text-anchor="end">{y:.2g}</text>' for y in seconds]
        panels.append(
            f'<g transform="translate({number * 270},0)"><text x="145" y="18" text-anchor="middle">CPU seconds over {name}</text>'
            f'<polyline points="50,30 50,180 240,180" fill="none" stroke="#444"/>'
            f'<polyline points="{at(0, max(intercept, 0))} {at(wide, slope * wide + intercept)}" fill="none" stroke="#999"/>{"".join(marks + ticks)}</g>'
        )
    head = (
        '<svg xmlns="http://www.w3.org/2000/svg" width="810" height="205" font-family="sans-serif" font-size="11"><rect width="810" height="205" fill="white"/>'
    )
    path.write_text("\n".join([head, *panels, "</svg>"]) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--stages", default="", help="calibrate these only")
    parser.add_argument("--whole", default="down1/B2,up1/catR,up3/catD", help="blocks that the naive loop fits in full")
    options = parser.parse_args()
    torch.set_num_threads(1)
    network = tocsr_unet()
    load = os.getloadavg()[0]
    content: dict[str, Any] = {"clock": "CPU seconds of one thread; the machine was shared with other work"}
    content["measuring"] = measuring(network, options.candidates, options.rounds)
    content["growth"] = growth(network, options.rounds)
    content["calibrating"] = calibrating(network, options.rounds, options.whole.split(","), options.stages.split(",") if options.stages else None)
    content["load before and after"] = [load, os.getloadavg()[0]]
    draw(content["growth"], PICTURE)
    write_result("engine", content)


if __name__ == "__main__":
    main()
