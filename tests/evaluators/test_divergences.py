import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from nas.data import Samples
from nas.errors import ContractError, InputError
from nas.evaluators.divergence import Divergence, DivergenceEvaluator
from nas.evaluators.divergences import cosine_distance, disagreement, kl_divergence, lost_accuracy
from nas.graph import StageGraph, Step


def test_kl_is_the_sum_over_classes_and_the_mean_over_positions() -> None:
    p, q = torch.randn(3, 2, 5), torch.randn(3, 2, 5)
    want = []
    for i in range(3):
        total = 0.0
        for j in range(2):
            a, b = p[i, j].softmax(0), q[i, j].softmax(0)
            total += sum(float(a[k]) * math.log(float(a[k] / b[k])) for k in range(5))
        want.append(total / 2)
    torch.testing.assert_close(kl_divergence(p, q), torch.tensor(want), rtol=1e-4, atol=1e-6)


def test_cosine_distance_is_zero_for_multiples_and_two_for_opposites() -> None:
    x = torch.randn(4, 6)
    torch.testing.assert_close(cosine_distance(x, 3 * x), torch.zeros(4), atol=1e-6, rtol=0)
    torch.testing.assert_close(cosine_distance(x, -x), torch.full((4,), 2.0))


def test_disagreement_and_lost_accuracy_count_samples() -> None:
    teacher, candidate = torch.eye(3), torch.eye(3)[[0, 2, 2]]
    assert disagreement(teacher, candidate).tolist() == [0, 1, 0]
    assert lost_accuracy(teacher, candidate, torch.tensor([0, 1, 0])).tolist() == [0, 1, 0]
    assert lost_accuracy(teacher, candidate, torch.tensor([0, 2, 2])).tolist() == [0, 0, 0]


def evaluator(divergence: Divergence, target: Tensor | None = None) -> DivergenceEvaluator:
    graph = StageGraph(("x",), (Step("a", ("x",), ("y",), nn.Identity()),), "y")
    samples = Samples({"x": torch.eye(8)}, torch.arange(8), target)
    return DivergenceEvaluator(graph, ["a"], [[graph["a"].module, nn.Flatten(), nn.ReLU()]], [["t", "f", "r"]], samples, identity="i", divergence=divergence)


def test_a_divergence_may_take_the_target() -> None:
    def weighted(teacher: Tensor, candidate: Tensor, target: Tensor) -> Tensor:
        return target.float()

    assert evaluator(weighted, torch.arange(8)).measure([(1,)])[0].divergence == pytest.approx(3.5)


def test_a_divergence_that_wants_a_target_where_there_is_none_is_refused() -> None:
    with pytest.raises(InputError, match="divergence 'lost_accuracy' takes a target, and the samples have none"):
        evaluator(lost_accuracy)


def test_a_divergence_of_another_signature_is_refused() -> None:
    with pytest.raises(InputError, match="must take the teacher's output, the candidate's and perhaps the target, takes 1"):
        evaluator(lambda teacher: teacher)


def test_a_divergence_that_gives_no_value_a_sample_is_named_with_what_it_gave() -> None:
    def mean(teacher: Tensor, candidate: Tensor) -> Tensor:
        return (teacher - candidate).square().mean()

    with pytest.raises(ContractError, match=r"divergence 'mean' must give one value a sample, \(8,\), got \(\)"):
        evaluator(mean).measure([(1,)])


def test_functions_that_differ_only_in_their_code_or_constants_share_no_measurement() -> None:
    def scaled(factor: float) -> Divergence:
        return lambda teacher, candidate: (teacher - candidate).square().sum(1) * factor

    makers: list[Divergence] = [scaled(1.0), scaled(2.0), lambda teacher, candidate: (teacher - candidate).abs().sum(1)]
    keys = [evaluator(divergence)._key((1,)) for divergence in makers]
    assert all(one != other for one, other in itertools.combinations(keys, 2))
    assert keys[0] == evaluator(scaled(1.0))._key((1,))
