"""Measuring candidates on CUDA: the values of the CPU, nobody waiting, memory that does not suffice."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nas.data import Samples, Splits
from nas.devices import moved
from nas.evaluators.divergence import DivergenceEvaluator, Settings
from nas.evaluators.gauss_newton import expected_losses
from nas.evaluators.numerics import Numerics
from nas.graph import StageGraph, Step
from nas.progress import Quiet
from nas.space import Candidate
from nas.spaces.network import NetworkSpace
from nas.spaces.tocsr.space import tocsr_unet

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

DEVICE = "cuda"
CANDIDATES: list[Candidate] = [(0, 0, 0, 0, 0, 0, 0, 0, 1), (1, 2, 0, 1, 1, 2, 0, 1, 2), (1, 2, 0, 1, 2, 1, 1, 3, 1), (3, 3, 3, 2, 2, 3, 3, 3, 3)]


def embedded(device: str, n: int = 48) -> NetworkSpace:
    """The embedded teacher with few samples."""
    space = tocsr_unet(device=device)
    few = Splits(*(samples.rows(slice(0, n)) for samples in (space.data.fit, space.data.measure, space.data.verify)))
    return replace(space, data=few)


def blocks_of(space: NetworkSpace, device: str = DEVICE) -> list[list[nn.Module]]:
    """For each stage its choices, the surrogate blocks as the recipes of the space's own device start them."""
    made = space.uncalibrated()
    return [[space.graph[s.name].module, *(made[s.name, c.name].to(device).eval().requires_grad_(False) for c in s.choices[1:])] for s in space.stages]


def evaluator(space: NetworkSpace, settings: Settings, blocks: list[list[nn.Module]] | None = None, samples: Samples | None = None) -> DivergenceEvaluator:
    names, keys = [s.name for s in space.stages], [[c.name for c in s.choices] for s in space.stages]
    rows = blocks_of(space) if blocks is None else blocks
    return DivergenceEvaluator(space.graph, names, rows, keys, samples or space.data.measure, identity="test", settings=settings)


@pytest.fixture(scope="module")
def space() -> NetworkSpace:
    return embedded(DEVICE)


@contextmanager
def nobody_waits() -> Iterator[None]:
    """What makes the host wait for the device raises."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_values_are_those_of_the_cpu(space: NetworkSpace) -> None:
    cpu = embedded("cpu")
    blocks = [[cpu.graph[stage.name].module, *row[1:]] for stage, row in zip(cpu.stages, blocks_of(space, "cpu"), strict=True)]
    there, here = evaluator(space, Settings(16)).measure(CANDIDATES), evaluator(cpu, Settings(16), blocks).measure(CANDIDATES)
    assert [m.divergence for m in there] == pytest.approx([m.divergence for m in here], rel=1e-3)


def test_costs_are_those_of_the_cpu(space: NetworkSpace) -> None:
    there, here = space.costs(), embedded("cpu").costs()
    assert dict(there.fixed) == dict(here.fixed)
    for metric, table in here.by_choice.items():
        np.testing.assert_array_equal(there.by_choice[metric], table)


def test_reuse_equals_fresh_passes_bit_for_bit(space: NetworkSpace) -> None:
    together = evaluator(space, Settings(16)).measure(CANDIDATES)
    alone = [evaluator(space, Settings(16)).measure([candidate])[0] for candidate in CANDIDATES]
    assert [m.divergence for m in together] == [m.divergence for m in alone]


@pytest.mark.parametrize(("words", "most"), [("tf32", 1e-5), ("channels_last", 1e-8), ("bf16", 1e-2), ("fp16", 1e-4), ("bf16,channels_last", 1e-2)])
def test_other_numerics_are_near_fp32(space: NetworkSpace, words: str, most: float) -> None:
    rough = evaluator(space, Settings(16, numerics=Numerics.parse(words)))
    assert rough.numeric_error() < most
    exact = evaluator(space, Settings(16)).measure(CANDIDATES[1:])
    for a, b in zip(exact, rough.measure(CANDIDATES[1:]), strict=True):
        assert b.divergence == pytest.approx(a.divergence, rel=0.3, abs=20 * most)


def test_torch_is_set_as_before_after_measuring(space: NetworkSpace) -> None:
    flags = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic, torch.backends.cuda.matmul.allow_tf32
    evaluator(space, Settings(16, numerics=Numerics("tf32"))).measure(CANDIDATES[:1])
    assert flags == (torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic, torch.backends.cuda.matmul.allow_tf32)


def test_compiled_blocks_compute_the_same(space: NetworkSpace) -> None:
    compiled = evaluator(space, Settings(16, numerics=Numerics(compiled=True)))
    assert compiled.numeric_error() < 1e-8
    (plain,), (fast,) = evaluator(space, Settings(16)).measure(CANDIDATES[1:2]), compiled.measure(CANDIDATES[1:2])
    assert fast.divergence == pytest.approx(plain.divergence, rel=1e-3)


@pytest.mark.parametrize("words", ["fp32", "bf16"])
def test_nobody_waits_for_a_chunk(space: NetworkSpace, words: str) -> None:
    busy = evaluator(space, Settings(16, numerics=Numerics.parse(words)))
    busy.measure(CANDIDATES[:2])
    with nobody_waits():
        values = [busy._measure_chunk(number, candidate) for number in range(3) for candidate in CANDIDATES[:2]]
    assert all(bool(torch.isfinite(value).all()) for value in values)


def test_samples_and_blocks_in_main_memory_get_there_without_waiting_and_change_no_value(space: NetworkSpace) -> None:
    near = evaluator(space, Settings(16)).measure(CANDIDATES)
    far = evaluator(space, Settings(16), blocks_of(space, "cpu"), space.data.measure.to("cpu"))
    assert [m.divergence for m in far.measure(CANDIDATES)] == [m.divergence for m in near]
    block = far._blocks[0][1]
    far._resident.clear()
    with nobody_waits():
        (copied,) = far._resident.fetch([block])
        arrived = moved(torch.arange(1000), DEVICE)
    assert next(copied.parameters()).device.type == DEVICE
    assert next(block.parameters()).device.type == "cpu"
    assert torch.equal(arrived.cpu(), torch.arange(1000))


def test_blocks_on_the_device_stay_within_their_budget(space: NetworkSpace) -> None:
    candidates = [tuple(k for _ in space.stages) for k in (1, 2, 3, 1, 2)]
    free = evaluator(space, Settings(16, reuse_mb=0), blocks_of(space, "cpu")).measure(candidates)
    tight = evaluator(space, Settings(16, reuse_mb=0, resident_mb=4), blocks_of(space, "cpu"))
    assert [m.divergence for m in tight.measure(candidates)] == [m.divergence for m in free]
    largest = max(sum(p.nbytes for row in tight._blocks for p in row[k].parameters()) for k in (1, 2, 3))
    assert tight._resident.nbytes <= max(4 << 20, largest)


class Hungry(nn.Module):
    """Takes 64 MB a sample for a moment."""

    def forward(self, h: Tensor) -> Tensor:
        taken = h.new_ones(len(h), 16 << 20)
        return h + taken[:, :1]


def hungry(chunk: int) -> DivergenceEvaluator:
    graph = StageGraph(("x",), (Step("a", ("x",), ("h",), nn.Linear(4, 4).to(DEVICE)), Step("b", ("h",), ("y",), nn.Identity())), "y")
    samples = Samples({"x": torch.randn(64, 4, device=DEVICE)}, torch.arange(64))
    blocks = [[graph["b"].module, Hungry(), nn.Tanh()]]
    return DivergenceEvaluator(graph, ["b"], blocks, [["teacher", "hungry", "tanh"]], samples, identity="test", settings=Settings(chunk))


@contextmanager
def memory_for(mb: int) -> Iterator[None]:
    """The device has so much memory left for this process."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (mb << 20)) / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_a_full_device_halves_micro_batches() -> None:
    greedy = hungry(32)
    with memory_for(1536):
        (measured,) = greedy.measure([(1,)])
    assert measured.divergence == pytest.approx(1.0)
    assert greedy._parts == 2


def test_a_candidate_that_does_not_fit_in_half_fails_alone() -> None:
    greedy = hungry(32)
    with memory_for(512):
        failed, fine = greedy.measure([(1,), (2,)])
    assert failed.divergence is None
    assert failed.reason.startswith("out of memory with 16 samples at a time (CUDA out of memory")
    assert fine.divergence is not None


def test_losses_are_foreseen_as_on_the_cpu_with_blocks_that_wait_there(space: NetworkSpace) -> None:
    cpu = embedded("cpu")
    made = cpu.uncalibrated()
    blocks = {s.name: [made[s.name, c.name].eval().requires_grad_(False) for c in s.choices[1:]] for s in cpu.stages}
    here, there = (expected_losses(one.graph, blocks, one.divergence, one.data.measure, Quiet()) for one in (cpu, space))
    np.testing.assert_allclose(there, here, rtol=1e-2)
    assert all(p.device.type == "cpu" for row in blocks.values() for block in row for p in block.parameters())
