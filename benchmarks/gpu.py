"""How fast are measuring, calibrating and assembling on a CUDA device, and what do number formats, layouts and compilation cost in exactness?

Wall time, the device waited for before and after; medians of rounds in which rivals take turns.

    measuring     candidates a second by the evaluator, and by whole forward passes of pointer-swapped modules, on the same samples: a stretch of the
                  exhaustive order and random candidates; `floor`: each step that had to run, timed alone in a queue of its own calls
    numerics      a whole pass of the teacher and of a candidate in each, and the error of the teacher's output as a share of its variance
    calibrating   blocks of all stages, as many steps each: the engine, the naive loop (teacher forward at every step), the block's own passes
    residence     a block that waits in main memory: first and further use
    latency       the additive table against 20 whole candidates

First the embedded teacher, then a U-Net of SD1.5's size with random weights.

    python benchmarks/gpu.py FOLDER [--device cuda] [--quick] [--parts embedded compiled "SD1.5 at 32x32" "SD1.5 at 64x64"]

Further parts are added to the file of the same day in the same folder.
"""

import argparse
import copy
import itertools
import json
import platform
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from engine import naive, own
from torch import Tensor, nn

from nas.blocks.features import collect_features
from nas.blocks.fit import calibrate_block
from nas.data import Samples, Splits
from nas.evaluators.divergence import DivergenceEvaluator, Settings, mean_squared_error
from nas.evaluators.numerics import Numerics
from nas.evaluators.resident import ResidentModules
from nas.graph import StageGraph, call_step
from nas.progress import Quiet
from nas.space import Candidate, Stage
from nas.spaces.network import NetworkSpace
from nas.spaces.tocsr.compact import CompactUNet
from nas.spaces.tocsr.counts import sd15_unet
from nas.spaces.tocsr.library import library
from nas.spaces.tocsr.space import tocsr_unet
from nas.spaces.tocsr.unet import example_inputs, unet_graph

ROUNDS = 3
PARTS = ["embedded", "compiled", "SD1.5 at 32x32", "SD1.5 at 64x64"]


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(call: Callable[..., Any], *arguments: Any) -> float:
    """Wall seconds, the device's work included."""
    wait()
    started = time.perf_counter()
    call(*arguments)
    wait()
    return time.perf_counter() - started


def medians(ways: dict[str, Callable[[], Any]], rounds: int = ROUNDS) -> dict[str, float]:
    """Seconds of each way, after one round that warms up; the ways take turns."""
    for call in ways.values():
        call()
    found = [{name: seconds(call) for name, call in ways.items()} for _ in range(rounds)]
    return {name: statistics.median(one[name] for one in found) for name in ways}


@dataclass
class Case:
    """A network, some blocks of its stages, and samples: what is measured."""

    graph: StageGraph
    stages: Sequence[Stage]
    blocks: list[list[nn.Module]]
    samples: Samples
    chunk: int

    def evaluator(self, words: str = "fp32") -> DivergenceEvaluator:
        keys = [[str(k) for k in range(len(row))] for row in self.blocks]
        settings = Settings(self.chunk, reuse_mb=16384, numerics=Numerics.parse(words))
        return DivergenceEvaluator(self.graph, [s.name for s in self.stages], self.blocks, keys, self.samples, identity="benchmark", settings=settings)

    def whole(self, candidate: Candidate) -> list[Tensor]:
        """Forward passes with the candidate's modules in place."""
        chosen = {stage.name: row[k] for stage, row, k in zip(self.stages, self.blocks, candidate, strict=True)}
        with torch.no_grad(), Numerics().context(self.graph.device or "cpu"):
            return [self.graph.run(part.inputs, chosen) for part in self.samples.chunks(self.chunk)]

    def by_whole_passes(self, candidates: Sequence[Candidate]) -> list[float]:
        """Divergences, fetched once at the end."""
        teacher = self.whole((0,) * len(self.stages))
        found = [torch.cat([mean_squared_error(a, b) for a, b in zip(teacher, self.whole(c), strict=True)]).double().mean() for c in candidates]
        return [float(value) for value in torch.stack(found).cpu()]

    def by_evaluator(self, candidates: Sequence[Candidate]) -> list[float]:
        """Divergences by an evaluator that starts with nothing."""
        return [m.divergence or 0.0 for m in self.evaluator().measure(candidates)]

    def floor(self, candidates: Sequence[Candidate]) -> float:
        """Seconds of the calls that the evaluator makes, each module timed alone in a row of calls."""
        calls: dict[int, list[Any]] = {}
        handles = []
        for step in self.graph.steps:
            rows = [row for stage, row in zip(self.stages, self.blocks, strict=True) if stage.name == step.name]
            for module in rows[0] if rows else [step.module]:

                def count(module: nn.Module, arguments: Any, written: Any) -> None:
                    del written
                    calls.setdefault(id(module), [module, arguments, 0])[2] += 1

                handles.append(module.register_forward_hook(count))
        self.by_evaluator(candidates)
        for handle in handles:
            handle.remove()
        with torch.no_grad():
            return sum(count * seconds(lambda m=module, a=arguments: [m(*a) for _ in range(10)]) / 10 for module, arguments, count in calls.values())

    def lists(self, count: int) -> dict[str, list[Candidate]]:
        """A stretch of the exhaustive order, and random candidates."""
        sizes, random = [len(row) for row in self.blocks], np.random.default_rng(0)
        exhaustive = [tuple(c) for c in itertools.islice(itertools.product(*map(range, sizes)), 7, 7 + count)]
        return {"exhaustive order": exhaustive, "random": [tuple(int(random.integers(size)) for size in sizes) for _ in range(count)]}


def measuring(case: Case, count: int) -> dict[str, Any]:
    """Both ways on both lists of candidates."""
    found: dict[str, Any] = {"samples": len(case.samples), "chunk": case.chunk, "candidates": count}
    for name, candidates in case.lists(count).items():
        times = medians({"whole": lambda c=candidates: case.by_whole_passes(c), "evaluator": lambda c=candidates: case.by_evaluator(c)})
        with Numerics().context(case.graph.device or "cpu"):
            floor = case.floor(candidates)
        whole = case.by_whole_passes(candidates)
        found[name] = {
            "seconds": times,
            "candidates a second": count / times["evaluator"],
            "times faster than whole passes": times["whole"] / times["evaluator"],
            "share of the floor": floor / times["evaluator"],
            "largest difference, share of the largest value": float(np.max(np.abs(np.array(whole) - case.by_evaluator(candidates))) / np.max(whole)),
        }
    evaluator = case.evaluator()
    found["assembling one candidate (ms)"] = seconds(lambda: [evaluator.modules(candidates[0]) for _ in range(1000)])
    return found


def numerics(case: Case, words: Sequence[str], candidate: Candidate) -> dict[str, Any]:
    """Seconds of whole passes over all samples, and the error, in each."""
    found = {}
    for text in words:
        started = time.perf_counter()
        try:
            rough = case.evaluator(text)
            error = rough.numeric_error()
            rough.outputs(candidate)
            first = time.perf_counter() - started
            teacher = (0,) * len(case.stages)

            def alone(which: Candidate, rough: DivergenceEvaluator = rough) -> None:
                rough._traces.clear()
                rough.outputs(which)

            times = medians({"teacher": lambda t=teacher, a=alone: a(t), "candidate": lambda a=alone: a(candidate)})
            found[text] = {"seconds": times, "error, share of variance": error, "first use (s)": first}
        except Exception as failure:  # the other rows still count
            found[text] = {"failed": f"{type(failure).__name__}: {str(failure).splitlines()[0][:300]}"}
        print(text, found[text], file=sys.stderr, flush=True)
    return found


def calibrating(network: NetworkSpace, steps: int, batch: int | None = None) -> dict[str, Any]:
    """One block of each stage: the engine, the naive loop and the block's own passes, in turn."""
    settings = replace(network.calibration, max_steps=steps, check_every=min(25, steps), patience=10_000, finish=False)
    settings = settings if batch is None else replace(settings, batch_size=batch)
    paired = replace(network, calibration=settings)
    features_s = seconds(lambda: collect_features(network.graph, [s.name for s in network.stages], network.data.fit, Quiet(), batch_size=settings.batch_size))
    rows = []
    for stage in network.stages:
        features = collect_features(network.graph, [stage.name], network.data.fit, Quiet(), batch_size=settings.batch_size)[stage.name]
        choice = stage.choices[1]

        def block(stage: Stage = stage, recipe: Any = choice.recipe) -> nn.Module:
            torch.manual_seed(0)
            made: nn.Module = recipe.build(network.graph[stage.name].module)
            return made

        own(paired, features, block(), 3)
        engine, again = block(), block()
        rows.append(
            {
                "block": f"{stage.name}/{choice.name}",
                "engine": seconds(calibrate_block, engine, features, settings),
                "engine again": seconds(calibrate_block, again, features, settings),
                "with the linear ends solved": seconds(calibrate_block, block(), features, replace(settings, finish=True)),
                "naive": seconds(naive, paired, features, block(), steps),
                "own": seconds(own, paired, features, block(), steps),
                "same weights twice": all(torch.equal(a, b) for a, b in zip(engine.parameters(), again.parameters(), strict=True)),
            }
        )
    total = {way: sum(row[way] for row in rows) for way in ("engine again", "naive", "own")}
    return {
        "steps": steps,
        "batch": settings.batch_size,
        "features once (s)": features_s,
        "blocks": rows,
        "times faster than naive, features left out": total["naive"] / total["engine again"],
        "times own forward and backward": total["engine again"] / total["own"],
    }


def residence(case: Case, device: torch.device) -> dict[str, float]:
    """Milliseconds until a block that waits in main memory computes, at first and then, and what it weighs."""
    block, stage = case.blocks[0][1], case.stages[0].name
    reads: list[Any] = []
    with torch.no_grad():
        case.graph.run(next(iter(case.samples.chunks(case.chunk))).inputs, observe=lambda step, read, _: reads.append(read) if step.name == stage else None)
        resting, resident = copy.deepcopy(block).cpu(), ResidentModules(device)

        def use() -> None:
            call_step(case.graph[stage], resident.fetch([resting])[0], reads[0])

        use()
        resident.clear()
        first = seconds(use)
        further = statistics.median(seconds(use) for _ in range(10))
    return {"weights (MB)": sum(p.nbytes for p in block.parameters()) / 1e6, "first use (ms)": 1000 * first, "further use (ms)": 1000 * further}


def embedded_case(device: torch.device, n: int) -> Case:
    """The embedded teacher, its library with weights as drawn, and `n` samples."""
    network = tocsr_unet(device=str(device))
    made = network.uncalibrated()
    blocks = [[network.graph[s.name].module, *(made[s.name, c.name].eval().requires_grad_(False) for c in s.choices[1:])] for s in network.stages]
    return Case(network.graph, network.stages, blocks, network.data.measure.rows(slice(0, n)), 32)


def embedded(device: torch.device, quick: bool) -> dict[str, Any]:
    """The embedded teacher."""
    network, case = tocsr_unet(device=str(device)), embedded_case(device, 32 if quick else 128)
    candidate = tuple(1 for _ in network.stages)
    words = ["fp32", "tf32", "channels_last", "bf16", "fp16", "bf16,channels_last"]
    few = 25 if quick else 75
    with tempfile.TemporaryDirectory() as home:
        space = replace(network, home=Path(home))
        latency = {f"batch {batch}": {k: v for k, v in space.measure_latency(Quiet(), batch).items() if k.endswith(("error", "ms"))} for batch in (1, 32)}
    return {
        "measuring": measuring(case, 6 if quick else 48),
        "numerics": numerics(case, words, candidate),
        "calibrating": calibrating(network, few),
        "residence": residence(case, device),
        "latency": latency,
    }


def compiled(device: torch.device) -> dict[str, Any]:
    """The embedded teacher and one candidate through `torch.compile`."""
    case = embedded_case(device, 128)
    return numerics(case, ["compile", "bf16,compile"], tuple(1 for _ in case.stages))


def full_size(device: torch.device, size: int, n: int) -> dict[str, Any]:
    """A U-Net of SD1.5's size with random weights, two surrogate blocks a stage."""
    torch.manual_seed(0)
    unet = CompactUNet.from_config(dict(sd15_unet().config)).to(device).eval().requires_grad_(False)
    graph = unet_graph(unet)
    stages = tuple(replace(s, choices=(s.choices[0], s.choices[1], s.choices[-1])) for s in library(graph))
    with torch.no_grad():
        blocks = [[graph[s.name].module, *(c.recipe.build(graph[s.name].module).eval() for c in s.choices[1:] if c.recipe)] for s in stages]
    inputs = example_inputs(unet, size, batch=n)
    samples = Samples(inputs, torch.arange(n))
    case = Case(graph, stages, blocks, samples, n)
    words = ["fp32", "tf32", "tf32,channels_last", "bf16", "bf16,channels_last", "fp16"]
    found = {"latent": size, "params": sum(p.numel() for p in unet.parameters()), "measuring": measuring(case, 8)}
    found["numerics"] = numerics(case, words, tuple(1 for _ in stages))
    parts = Splits(*(Samples({k: v + 0 for k, v in inputs.items()}, n * part + torch.arange(n)) for part in range(3)))
    chosen = tuple(stage for stage in stages if stage.name in ("down1", "mid", "up2"))
    found["calibrating"] = calibrating(NetworkSpace("full", graph, chosen, parts), 20, batch=min(n, 4))
    found["residence"] = residence(case, device)
    found["largest memory (GB)"] = torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else None
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="by default all, or the first alone where `--quick`")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(asked.device)
    asked.folder.mkdir(parents=True, exist_ok=True)
    path = asked.folder / f"gpu-{time.strftime('%Y-%m-%d')}.json"
    content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"benchmark": "gpu", "date": time.strftime("%Y-%m-%d"), "commands": []}
    content["commands"].append(" ".join(["python", "benchmarks/gpu.py", *sys.argv[1:]]))
    content |= {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    for name in asked.parts or (PARTS[:1] if asked.quick else PARTS):
        started = time.perf_counter()
        try:
            if name == "embedded":
                content[name] = embedded(device, asked.quick)
            else:
                content[name] = compiled(device) if name == "compiled" else full_size(device, int(name.split("x")[-1]), 8)
        except Exception as failure:  # what was measured before is kept
            content[name] = {"failed": traceback.format_exc()}
            print(failure, file=sys.stderr)
        content[name]["seconds in all"] = time.perf_counter() - started
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
