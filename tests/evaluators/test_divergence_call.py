"""A divergence of one's own: refused before calibration if it is not zero at the teacher, named with its line if it fails."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import nas
from nas.batches import collect, split
from nas.blocks.reductions.depth import Bypass
from nas.cli.results import winners_table
from nas.cli.search import failures
from nas.errors import ContractError, InputError, UserCodeError
from nas.evaluators.divergence_call import described
from nas.evaluators.divergences import kl_divergence
from nas.progress import Quiet
from nas.spaces.model import model_space
from nas.spaces.network import NetworkSpace
from tests.conftest import toy_graph, toy_samples, toy_stages


def signed(teacher: Tensor, candidate: Tensor) -> Tensor:
    return (teacher - candidate).flatten(1).sum(1)


def above_one(teacher: Tensor, candidate: Tensor) -> Tensor:
    return 1 + signed(teacher, candidate).square()


def fails(teacher: Tensor, candidate: Tensor) -> Tensor:
    raise ValueError("my bug")


def never_finite(teacher: Tensor, candidate: Tensor) -> Tensor:
    return signed(teacher, candidate) / 0


def endless(teacher: Tensor, candidate: Tensor) -> Tensor:
    """Zero at the teacher, infinite anywhere else."""
    return torch.where(signed(teacher, candidate) == 0, 0.0, torch.inf)


@pytest.fixture
def network(home: Path) -> NetworkSpace:
    data = split(collect([toy_samples(64, 0).inputs]), fit=0.5, measure=0.25)
    graph = toy_graph()
    return NetworkSpace("toy", graph, toy_stages(), data, home=home)


@pytest.mark.parametrize(
    ("divergence", "error", "message"),
    [
        (above_one, ContractError, "divergence 'above_one' must be 0 for the teacher itself, it is 1; subtract"),
        (fails, UserCodeError, r"divergence 'fails': ValueError: my bug \(.*test_divergence_call.py:\d+\)"),
        (never_finite, ContractError, "divergence 'never_finite' must be finite, it is .*nan"),
    ],
)
def test_a_divergence_that_cannot_be_meant_stops_before_any_block_is_calibrated(
    network: NetworkSpace, home: Path, divergence: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        replace(network, divergence=divergence).prepare(Quiet())
    assert not list(home.rglob("*.safetensors"))


def test_a_name_is_no_divergence(network: NetworkSpace) -> None:
    with pytest.raises(InputError, match=r"divergence must be a function .* got 'mse'; nas.evaluators.divergences has some"):
        replace(network, divergence="mse")  # type: ignore[arg-type]


def test_a_negative_divergence_is_legal_and_no_share_of_the_variance(network: NetworkSpace) -> None:
    result = nas.search(replace(network, divergence=signed), 10.0, workdir=None, trials=3)
    summary, record = result.to_json(), result.table
    assert record["divergence"] == "`signed` of the outputs"
    assert summary["winners"][0]["relative_divergence"] is None
    assert "of output variance" not in [column.header for column in winners_table(summary).columns]
    squared = nas.search(network, 10.0, workdir=None, trials=3)
    assert squared.table["divergence"] == "mean squared difference of the outputs"
    assert "of output variance" in [column.header for column in winners_table(squared.to_json()).columns]


def test_a_search_whose_trials_all_failed_says_why(network: NetworkSpace) -> None:
    result = nas.search(replace(network, divergence=endless), 0.1, workdir=None, trials=4)
    assert failures(result.study.trials).endswith("trials failed, mostly because of: divergence is not finite (inf)")


def test_missing_numbers_in_samples_are_named_with_set_input_and_sample() -> None:
    inputs = {name: value.clone() for name, value in toy_samples(64, 0).inputs.items()}
    next(iter(inputs.values()))[5] = torch.nan
    with pytest.raises(InputError, match=r"set '\w+': input 'x' has NaN in 1 of \d+ samples, such as that of group 5; leave them out"):
        split(collect([inputs]), fit=0.5, measure=0.25)


def test_a_divergence_of_classes_refuses_a_regression_and_says_what_it_reads() -> None:
    network, n = torch.nn.Linear(4, 3), 64
    network.eval()
    x, y = torch.randn(n, 4, generator=torch.Generator().manual_seed(0)), torch.randn(n, 3, generator=torch.Generator().manual_seed(1))

    def space(target: Tensor, model: torch.nn.Module = network) -> NetworkSpace:
        data = split(collect([(x, target)], ("input", "target"), target="target"))
        return model_space("classes", torch.nn.Sequential(torch.nn.Linear(4, 4), model).eval(), ["0"], data, [Bypass()], divergence=kl_divergence)

    with pytest.raises(InputError, match="that is a regression; mean_squared_error"):
        space(y).missing_blocks()
    with pytest.raises(InputError, match="needs at least 2, the output is"):
        space(y[:, :1], torch.nn.Linear(4, 1)).missing_blocks()
    space(y.softmax(1)).missing_blocks()
    space(y.argmax(1)).missing_blocks()
    assert "scores of classes along their last dimension" in described(kl_divergence)
    assert described(signed) == "`signed` of the outputs"
