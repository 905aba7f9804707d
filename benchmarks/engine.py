"""How close do measuring and calibrating come to the work that must be done, and how much faster are they than the obvious loops?

On the embedded teacher, one thread, in CPU seconds of that thread (so that other users of the machine do not count), rivals interleaved:

    measuring     the evaluator's reuse of step outputs against whole forward passes of pointer-swapped candidates, same modules, batch and
                  samples, on a stretch of the exhaustive order and on random candidates; `floor` is the time inside the modules of the
                  steps that had to run
    assembling    one candidate by reference
    calibrating   one block of each stage, as many steps each: features kept, against a teacher forward pass at every step; `own` is the
                  block's own forward and backward pass
    growth        seconds over three numbers of candidates, samples and steps

    python benchmarks/engine.py [--candidates 48] [--rounds 3] [--steps 25]
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from dated import write_result
from torch import nn

from nas.blocks.features import StageFeatures, collect_features
from nas.blocks.fit import calibrate_block, relative_errors
from nas.evaluators.divergence import DivergenceEvaluator, mean_squared_error
from nas.progress import Quiet
from nas.space import Candidate, Stage
from nas.spaces.network import NetworkSpace
from nas.spaces.tocsr.space import tocsr_unet

N_SAMPLES = 24


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


def calibrating(network: NetworkSpace, steps: int) -> dict[str, Any]:
    """One block of each stage: the engine, the naive loop and the block's own passes, in turn."""
    settings = replace(network.calibration, max_steps=steps, check_every=steps, patience=10_000)
    rows: list[dict[str, Any]] = []
    shared: list[StageFeatures] = []

    def collect() -> None:
        shared.extend(collect_features(network.graph, [stage.name for stage in network.stages], network.data.fit, Quiet()).values())

    features_s = cpu_s(collect)
    for stage, features in zip(network.stages, shared, strict=True):
        choice = stage.choices[1]
        torch.manual_seed(0)
        blocks = [choice.recipe.build(network.graph[stage.name].module) for _ in range(3)]  # type: ignore[union-attr]
        rows.append(
            {
                "block": f"{stage.name}/{choice.name}",
                "engine": cpu_s(calibrate_block, blocks[0], features, settings),
                "naive": cpu_s(naive, network, stage, blocks[1], steps, settings.batch_size),
                "own": cpu_s(own, blocks[2], features, steps, settings.batch_size),
            }
        )
    total = {way: sum(row[way] for row in rows) for way in ("engine", "naive", "own")}
    library = sum(len(stage.choices) - 1 for stage in network.stages)
    return {
        "steps": steps,
        "blocks": rows,
        "features once (s)": features_s,
        "engine": "features once and kept; held-out error before and after included",
        "times faster than naive, features left out": total["naive"] / total["engine"],
        "times faster than naive for the whole library at 300 steps": total["naive"] / (total["engine"] + features_s * len(rows) * steps / (library * 300)),
        "times own forward and backward": total["engine"] / total["own"],
    }


def naive(network: NetworkSpace, stage: Stage, block: nn.Module, steps: int, batch: int) -> None:
    """The obvious loop: every step runs the teacher on a fresh batch and fits the block to what it did there."""
    optimizer = torch.optim.Adam(block.parameters(), lr=2e-3)
    random = torch.Generator().manual_seed(0)
    for _ in range(steps):
        rows = network.data.fit.rows(torch.randint(len(network.data.fit), (batch,), generator=random))
        features = collect_features(network.graph, [stage.name], rows, Quiet())[stage.name]
        optimizer.zero_grad()
        relative_errors(block, features, torch.arange(batch)).mean().backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(block.parameters(), 1.0)
        optimizer.step()


def own(block: nn.Module, features: StageFeatures, steps: int, batch: int) -> None:
    """The block's forward and backward pass on one batch, and nothing else."""
    reads = tuple(value[:batch] for value in features.reads)
    for _ in range(steps):
        written = block(*reads)
        sum(value.sum() for value in (written if isinstance(written, tuple) else (written,))).backward()


def growth(network: NetworkSpace) -> dict[str, Any]:
    """Seconds over size, three sizes each."""
    random = np.random.default_rng(1)
    drawn = [tuple(int(random.integers(len(stage.choices))) for stage in network.stages) for _ in range(16)]
    ways = Measuring(network)
    stage = network.stages[-1]
    features = collect_features(network.graph, [stage.name], network.data.fit, Quiet())[stage.name]
    block = stage.choices[-1].recipe.build(network.graph[stage.name].module)  # type: ignore[union-attr]
    return {
        "candidates": {n: cpu_s(ways.by_evaluator, drawn[:n]) for n in (4, 8, 16)},
        "samples": {n: cpu_s(Measuring(network, n).by_evaluator, drawn[:4]) for n in (16, 32, 64)},
        "steps": {n: cpu_s(own, block, features, n, 32) for n in (5, 10, 20)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=25)
    options = parser.parse_args()
    torch.set_num_threads(1)
    network = tocsr_unet()
    content = {
        "clock": "CPU seconds of one thread; the machine was shared with other work",
        "measuring": measuring(network, options.candidates, options.rounds),
        "calibrating": calibrating(network, options.steps),
        "growth": growth(network),
    }
    write_result("engine", content)


if __name__ == "__main__":
    main()
