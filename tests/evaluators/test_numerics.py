"""Other number formats and layouts, and what happens when memory does not suffice."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nas.blocks.calibration import CalibrationSettings
from nas.data import Splits
from nas.errors import InputError
from nas.evaluators.cache import EvaluationCache
from nas.evaluators.divergence import DivergenceEvaluator, Settings
from nas.evaluators.numerics import Numerics
from nas.graph import StageGraph
from nas.progress import Quiet
from nas.space import Stage
from nas.spaces.network import NetworkSpace
from tests.conftest import toy_graph, toy_samples, toy_stages


def evaluator(settings: Settings, cache: EvaluationCache | None = None, device: str = "cpu") -> DivergenceEvaluator:
    graph, stages = toy_graph(), toy_stages()
    torch.manual_seed(3)
    blocks = [[graph[s.name].module, *(c.recipe.build(graph[s.name].module) for c in s.choices[1:] if c.recipe)] for s in stages]
    for module in [*(step.module for step in graph.steps), *(block for row in blocks for block in row)]:
        module.to(device)
    keys = [[c.name for c in s.choices] for s in stages]
    samples = toy_samples(64, 1).to(device)
    return DivergenceEvaluator(graph, [s.name for s in stages], blocks, keys, samples, identity="toy", cache=cache, settings=settings)


@pytest.mark.parametrize("text", ["fp64", "bf16,fp16", "channels"])
def test_words_that_say_nothing_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="numerics"):
        Numerics.parse(text)


def test_numerics_read_back_what_they_say() -> None:
    for text in ("fp32", "bf16,channels_last", "fp16,compile"):
        assert str(Numerics.parse(text)) == text
    assert Numerics.parse("").plain


def test_another_format_is_another_cache_entry_and_states_its_error(tmp_path: Path) -> None:
    cache = EvaluationCache(tmp_path / "cache.db")
    exact, rough = evaluator(Settings(16), cache), evaluator(Settings(16, numerics=Numerics("bf16")), cache)
    (a,), (b,) = exact.measure([(1, 2, 1)]), rough.measure([(1, 2, 1)])
    assert not b.cached
    assert a.divergence != b.divergence
    assert a.divergence == pytest.approx(b.divergence, rel=0.1)
    assert exact.numeric_error() == 0.0
    assert 0 < rough.numeric_error() < 1e-3


def test_channels_last_computes_on_copies_and_gives_the_same_values() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 4, 3, padding=1)
    copied = Numerics("fp32", channels_last=True).module(conv)
    x = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(copied(x), conv(x))
    assert conv.weight.is_contiguous()
    assert not copied.weight.is_contiguous()  # type: ignore[union-attr,operator]


def test_a_space_says_how_far_its_numerics_are_from_fp32(graph: StageGraph, stages: tuple[Stage, ...], splits: Splits, home: Path) -> None:
    settings = Settings(numerics=Numerics("bf16"))
    task = NetworkSpace("toy", graph, stages, splits, calibration=CalibrationSettings(max_steps=20), evaluation=settings, home=home).prepare(Quiet())
    assert any("measured with bf16: the teacher's output differs from fp32 by" in note for note in task.notes)


class Greedy(nn.Module):
    """Has memory for so many samples."""

    def __init__(self, inner: nn.Module, most: int) -> None:
        super().__init__()
        self.inner, self.most = inner, most

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        if len(h) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB\nand more")
        written: tuple[Tensor, Tensor] = self.inner(h)
        return written


@pytest.mark.parametrize("most", [16, 8])
def test_too_little_memory_halves_micro_batches_once_then_fails_the_candidate_alone(tmp_path: Path, most: int) -> None:
    cache = EvaluationCache(tmp_path / "cache.db")
    plain, greedy = evaluator(Settings(32)), evaluator(Settings(32), cache)
    greedy._blocks = [list(row) for row in greedy._blocks]
    greedy._blocks[1][2] = Greedy(greedy._blocks[1][2], most)  # type: ignore[index]
    expected = plain.measure([(0, 1, 0), (1, 2, 1)])
    found = greedy.measure([(0, 1, 0), (1, 2, 1)])
    assert found[0].divergence == pytest.approx(expected[0].divergence, rel=1e-5)
    if most == 16:
        assert found[1].divergence == pytest.approx(expected[1].divergence, rel=1e-5)
        assert len(cache.get(greedy._key((1, 2, 1)))) == 0  # rounds otherwise than whole chunks
    else:
        assert found[1].divergence is None
        assert found[1].reason == "out of memory with 16 samples at a time (CUDA out of memory. Tried to allocate 9 GiB); give a smaller chunk"


def test_other_runtime_errors_are_bugs_and_stay_so() -> None:
    broken = evaluator(Settings(32))
    broken._blocks = [[nn.Linear(3, 3)] * 3, *broken._blocks[1:]]
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        broken.measure([(1, 1, 1)])


def test_features_in_files_are_computed_with_where_the_teacher_is(graph: StageGraph, splits: Splits, tmp_path: Path) -> None:
    from nas.blocks.features import FeatureBank, FeatureBudget, collect_features

    inside = collect_features(graph, ["b"], splits.fit, Quiet())["b"]
    outside = collect_features(graph, ["b"], splits.fit, Quiet(), folder=tmp_path)["b"]
    rows = torch.tensor([3, 1, 60])
    for a, b in zip((*inside.batch(rows)[0], *inside.batch(rows)[1]), (*outside.batch(rows)[0], *outside.batch(rows)[1]), strict=True):
        torch.testing.assert_close(a.half().float(), b, rtol=0, atol=0)
    assert len(list(tmp_path.iterdir())) == 3
    tight = FeatureBank(graph, splits.fit, ["a", "b", "c"], FeatureBudget(memory_mb=0, folder=tmp_path))
    assert torch.equal(tight.get("b", Quiet()).batch(rows)[1][0], outside.batch(rows)[1][0])
    assert replace(inside, device=torch.device("cpu")).batch(rows)[0][0].device.type == "cpu"
