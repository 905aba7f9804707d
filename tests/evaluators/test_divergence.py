import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from nas.data import Samples, Splits
from nas.evaluators.cache import EvaluationCache
from nas.evaluators.divergence import DivergenceEvaluator, Settings, clustered_stderr, estimated_mean
from nas.graph import StageGraph
from tests.conftest import Down, Up

NAMES = ("a", "b", "c")


@pytest.fixture
def blocks(graph: StageGraph) -> list[list[nn.Module]]:
    torch.manual_seed(5)
    return [[graph["a"].module, Down(8)], [graph["b"].module, Down(8), Down(2)], [graph["c"].module, Up(8)]]


def make(graph: StageGraph, blocks: list[list[nn.Module]], samples: Samples, cache: EvaluationCache | None = None, **settings: int) -> DivergenceEvaluator:
    keys = [[f"{name}{k}" for k in range(len(row))] for name, row in zip(NAMES, blocks, strict=True)]
    return DivergenceEvaluator(graph, NAMES, blocks, keys, samples, identity="toy", cache=cache, settings=Settings(**settings))


def all_candidates() -> list[tuple[int, ...]]:
    return list(itertools.product(range(2), range(3), range(2)))


def test_reuse_of_step_outputs_equals_a_fresh_forward_bit_for_bit(graph: StageGraph, blocks: list[list[nn.Module]], splits: Splits) -> None:
    evaluator = make(graph, blocks, splits.measure)
    order = [all_candidates()[i] for i in torch.randperm(12, generator=torch.Generator().manual_seed(0)).tolist()] * 2
    for candidate in order:
        chosen = {name: blocks[s][k] for s, (name, k) in enumerate(zip(NAMES, candidate, strict=True))}
        with torch.no_grad():
            fresh = torch.cat([graph.run(chunk.inputs, chosen) for chunk in splits.measure.chunks(32)])
        assert torch.equal(evaluator.outputs(candidate), fresh)


def test_a_step_runs_again_only_if_a_choice_it_depends_on_changed(graph: StageGraph, blocks: list[list[nn.Module]], splits: Splits) -> None:
    calls: list[str] = []
    for name in ("stem", "a", "b", "out"):
        graph[name].module.register_forward_hook(lambda *_, name=name: calls.append(name))
    evaluator = make(graph, blocks, splits.measure, chunk=128)
    evaluator.outputs((0, 0, 0))
    assert calls == ["stem", "a", "b", "out"]
    calls.clear()
    evaluator.outputs((0, 0, 1))
    assert calls == ["out"]


def test_divergence_is_the_mean_squared_difference_to_the_teacher(graph: StageGraph, blocks: list[list[nn.Module]], splits: Splits) -> None:
    measured = make(graph, blocks, splits.measure).measure([(1, 2, 1)])[0]
    x = splits.measure.inputs["x"]
    with torch.no_grad():
        difference = graph.run({"x": x}, {"a": blocks[0][1], "b": blocks[1][2], "c": blocks[2][1]}) - graph.run({"x": x})
    assert measured.divergence == pytest.approx(float(difference.square().mean()), rel=1e-5)
    assert measured.n_samples == 128
    assert measured.complete


def test_the_teacher_diverges_from_itself_by_exactly_zero(graph: StageGraph, blocks: list[list[nn.Module]], splits: Splits) -> None:
    measured = make(graph, blocks, splits.measure).measure([(1, 1, 1), (0, 0, 0)])[1]
    assert (measured.divergence, measured.stderr) == (0.0, 0.0)


def test_the_standard_error_counts_groups_not_samples() -> None:
    values = np.repeat([0.0, 1.0, 2.0, 3.0], 8)
    groups = np.repeat([0, 1, 2, 3], 8)
    between = np.std([0.0, 1.0, 2.0, 3.0], ddof=1) / 2
    assert clustered_stderr(values, groups) == pytest.approx(between)
    assert clustered_stderr(values, np.arange(32)) < between / 2
    assert clustered_stderr(values, np.zeros(32)) == 0.0


def test_racing_stops_early_far_from_eps_and_never_near_it(graph: StageGraph, blocks: list[list[nn.Module]], splits: Splits) -> None:
    evaluator = make(graph, blocks, splits.measure, chunk=16)
    full = evaluator.measure([(1, 2, 1)])[0]
    assert full.divergence is not None
    far = evaluator.measure([(1, 2, 1)], [full.divergence / 100, full.divergence * 100])[0]
    near = evaluator.measure([(1, 2, 1)], [full.divergence / 100, full.divergence * 1.001])[0]
    assert (far.n_samples, far.complete) == (16, False)
    assert far.attrs["noise"] > 0
    assert near == type(near)(full.divergence, full.stderr, 128, near.seconds, attrs={"noise": 0.0})


def test_racing_beside_a_like_candidate_needs_fewer_samples(graph: StageGraph, blocks: list[list[nn.Module]], splits: Splits, tmp_path: Path) -> None:
    candidate, like = (1, 2, 1), (0, 2, 1)
    whole = make(graph, blocks, splits.measure, chunk=8).measure([candidate])[0].divergence
    assert whole is not None
    alone = make(graph, blocks, splits.measure, chunk=8).measure([candidate], [0.97 * whole])[0]
    beside = make(graph, blocks, splits.measure, chunk=8).measure_beside(candidate, [0.97 * whole], [like])
    assert beside.n_samples < alone.n_samples
    assert beside.divergence == pytest.approx(whole, abs=4 * beside.attrs["noise"])
    cache = EvaluationCache(tmp_path / "evaluations.db")
    make(graph, blocks, splits.measure, cache, chunk=8).measure([candidate, like])
    cached = make(graph, blocks, splits.measure, cache, chunk=8).known(candidate, [0.97 * whole], [like])
    assert cached is not None
    assert (cached.divergence, cached.n_samples, cached.attrs) == (beside.divergence, beside.n_samples, beside.attrs)


def test_the_estimated_mean_is_as_sure_as_it_says() -> None:
    rng = np.random.default_rng(0)
    easy = rng.lognormal(0, 1.2, 256)
    values, other, groups = easy * rng.lognormal(0, 0.2, 256), easy * rng.lognormal(0, 0.2, 256), np.arange(256)
    scores, gains = [], []
    for _ in range(400):
        order = rng.permutation(256)
        plain = estimated_mean(values[order][:32], groups)
        beside = estimated_mean(values[order][:32], groups, [rng.lognormal(0, 1.2, 256), other[order]])
        scores.append((beside[0] - values.mean()) / beside[1])
        gains.append(plain[1] / beside[1])
    assert abs(np.mean(scores)) < 0.4
    assert 0.7 < np.std(scores) < 1.5
    assert np.median(gains) > 2
    assert estimated_mean(values, groups) == (values.mean(), 0.0)
    assert estimated_mean(values[:8], np.repeat(np.arange(2), 128))[1] == np.inf


def test_the_cache_changes_no_value_and_serves_what_is_known(graph: StageGraph, blocks: list[list[nn.Module]], splits: Splits, tmp_path: Path) -> None:
    plain = make(graph, blocks, splits.measure, chunk=16)
    cache = EvaluationCache(tmp_path / "evaluations.db")
    for eps in ([1e-9], [], [1e-9], [0.3]):
        want = plain.measure([(1, 1, 0)], eps)[0]
        got = make(graph, blocks, splits.measure, cache, chunk=16).measure([(1, 1, 0)], eps)[0]
        assert (got.divergence, got.stderr, got.n_samples) == (want.divergence, want.stderr, want.n_samples)
    assert make(graph, blocks, splits.measure, EvaluationCache(tmp_path / "evaluations.db"), chunk=16).measure([(1, 1, 0)])[0].cached


def test_other_samples_blocks_or_chunks_miss_the_cache(graph: StageGraph, blocks: list[list[nn.Module]], splits: Splits, tmp_path: Path) -> None:
    cache = EvaluationCache(tmp_path / "evaluations.db")
    make(graph, blocks, splits.measure, cache).measure([(1, 1, 0)])
    assert make(graph, blocks, splits.measure, cache).measure([(1, 1, 0)])[0].cached
    assert not make(graph, blocks, splits.verify, cache).measure([(1, 1, 0)])[0].cached
    assert not make(graph, blocks, splits.measure, cache, chunk=16).measure([(1, 1, 0)])[0].cached
    assert not make(graph, blocks, splits.measure, cache).measure([(1, 2, 0)])[0].cached


def test_a_candidate_whose_output_is_not_finite_fails_with_its_reason(graph: StageGraph, blocks: list[list[nn.Module]], splits: Splits, tmp_path: Path) -> None:
    with torch.no_grad():
        next(blocks[0][1].parameters()).fill_(torch.nan)
    cache = EvaluationCache(tmp_path / "evaluations.db")
    bad, good = make(graph, blocks, splits.measure, cache).measure([(1, 0, 0), (0, 1, 0)])
    assert bad.divergence is None
    assert "not finite" in bad.reason
    assert good.divergence is not None


def test_a_small_memory_bound_changes_no_value(graph: StageGraph, blocks: list[list[nn.Module]], splits: Splits) -> None:
    generous, frugal = make(graph, blocks, splits.measure), make(graph, blocks, splits.measure, reuse_mb=0)
    got = [m.divergence for m in frugal.measure(all_candidates())]
    assert got == [m.divergence for m in generous.measure(all_candidates())]
