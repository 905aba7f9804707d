import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from nas.batches import collect, split
from nas.errors import InputError

X, Y = torch.arange(40.0).reshape(20, 2), torch.arange(20)


def test_a_data_loader_of_inputs_and_labels_becomes_samples_with_targets() -> None:
    samples = collect(DataLoader(TensorDataset(X, Y), batch_size=8), ("x", "label"), target="label")
    assert list(samples.inputs) == ["x"]
    assert torch.equal(samples.inputs["x"], X)
    assert samples.target is not None
    assert torch.equal(samples.target, Y)


def test_tensors_dicts_and_generators_do_as_well() -> None:
    assert torch.equal(collect([X[:12], X[12:]]).inputs["x"], X)
    by_name = collect(({"ids": X[k : k + 5], "mask": Y[k : k + 5], "more": None} for k in range(0, 20, 5)), ("ids", "mask"))
    assert torch.equal(by_name.inputs["mask"], Y)
    assert torch.equal(collect([(X, Y, X + 1)], ("", "", "z")).inputs["z"], X + 1)
    assert len(collect([X[:12], X[12:]], limit=7)) == 7


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "yields no batch; it must yield at least one"),
        ([X, X[:, :1]], r"batch 1: 'x' must have samples of shape \(2,\), got \(1,\)"),
        ([X, "text"], "batch 1 must be a tensor, a tuple or a mapping of tensors, got str"),
        ([(X,), ([1, 2],)], "batch 1: 'x' must be a tensor with a row for each sample, got list"),
        ([()], r"batch 0 must have 1 entries \(x\), got 0"),
    ],
)
def test_batches_that_cannot_be_used_are_refused(batches: list[object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        collect(batches)


def test_a_split_is_disjoint_whole_and_reproducible() -> None:
    parts = split(collect([X]), 0.5, 0.25, seed=3)
    sets = [set(samples.groups.tolist()) for samples in (parts.fit, parts.measure, parts.verify)]
    assert [len(s) for s in sets] == [10, 5, 5]
    assert set.union(*sets) == set(range(20))
    assert torch.equal(split(collect([X]), 0.5, 0.25, seed=3).verify.inputs["x"], parts.verify.inputs["x"])


def test_shares_that_leave_a_set_empty_are_refused() -> None:
    with pytest.raises(InputError, match="must leave every set at least one"):
        split(collect([X]), 0.8, 0.2)


def test_all_that_mappings_hold_is_an_input_unless_it_is_the_target() -> None:
    batches = [{"ids": torch.arange(6).reshape(2, 3), "mask": torch.ones(2, 3), "label": torch.tensor([0, 1])} for _ in range(2)]
    samples = collect(batches, target="label")
    assert set(samples.inputs) == {"ids", "mask"}
    assert samples.target is not None
    assert set(collect([torch.zeros(2, 3)]).inputs) == {"x"}
    with pytest.raises(InputError, match="batch 1 has no 'mask'; it has: ids"):
        collect([batches[0], {"ids": batches[0]["ids"], "label": batches[0]["label"]}], target="label")
