"""Training state goes on exactly, and a damaged file is never taken for it."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from nas.checkpoint import load_checkpoint, save_checkpoint
from nas.data import hash_tensors
from nas.errors import DamagedFile, InputError

INTEGERS = st.integers(-(2**63), 2**63 - 1)
LEAVES = st.none() | st.booleans() | INTEGERS | st.floats(allow_nan=False) | st.text()
STATES = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | INTEGERS, inner), max_leaves=12)


@given(st.dictionaries(st.text(), STATES))
@settings(max_examples=60, deadline=None)
def test_what_is_saved_is_loaded_equal(tmp_path_factory: pytest.TempPathFactory, state: dict[str, Any]) -> None:
    path = tmp_path_factory.mktemp("state") / "a.safetensors"
    save_checkpoint(path, state)
    assert load_checkpoint(path) == state


def test_a_state_of_a_generator_of_numpy_is_loaded_equal(tmp_path: Path) -> None:
    state = {"generator": np.random.default_rng(0).bit_generator.state, "numbers": [1 << 127, -(1 << 63), (1 << 63) - 1]}
    save_checkpoint(tmp_path / "a", state)
    assert load_checkpoint(tmp_path / "a") == state


def test_a_changed_number_among_the_tensors_is_detected_and_a_file_of_an_earlier_version_read(tmp_path: Path) -> None:
    path, state = tmp_path / "a", {"rate": 0.125, "weight": torch.ones(2)}
    save_checkpoint(path, state)
    path.write_bytes(path.read_bytes().replace(b"0.125", b"0.625"))
    with pytest.raises(DamagedFile, match="its hash differs"):
        load_checkpoint(path)
    tensors = {"0": torch.ones(2)}
    plan = ["dict", [["rate", ["value", 0.125]], ["weight", ["tensor", "0"]]]]
    save_file(tensors, path, {"state": json.dumps(plan), "sha256": hash_tensors(tensors)})
    assert load_checkpoint(path)["rate"] == 0.125


def test_tensors_that_share_memory_or_see_a_part_of_it_are_saved_too(tmp_path: Path) -> None:
    whole = torch.arange(6.0).view(2, 3)
    state = {"whole": whole, "again": whole, "row": whole[1], "turned": whole.T, "nothing": torch.zeros(0), "more": torch.zeros(0, 2)}
    save_checkpoint(tmp_path / "a", state)
    found = load_checkpoint(tmp_path / "a")
    assert all(torch.equal(found[name], value) and found[name].shape == value.shape for name, value in state.items())


def trained(steps: int, path: Path, stop_after: int | None = None) -> dict[str, torch.Tensor]:
    """A network after `steps` of AdamW with momentum and averages, interrupted (and gone on) after `stop_after`."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    optimizer = torch.optim.AdamW([{"params": model[0].parameters(), "lr": 0.1}, {"params": model[1:].parameters()}], lr=0.01, amsgrad=True)
    first = 0
    if path.exists():
        state = load_checkpoint(path)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    for step in range(first, min(steps, stop_after or steps)):
        x = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    save_checkpoint(path, {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": stop_after or steps})
    return model.state_dict()


def test_interrupted_training_ends_bit_for_bit_like_uninterrupted_training(tmp_path: Path) -> None:
    whole = trained(20, tmp_path / "whole")
    trained(20, tmp_path / "part", stop_after=7)
    parted = trained(20, tmp_path / "part")
    assert all(torch.equal(whole[name], parted[name]) for name in whole)


def test_every_cut_and_every_flipped_byte_of_100_is_detected(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    trained(3, path)
    content = path.read_bytes()
    chance = random.Random(0)
    damaged = [content[: chance.randrange(len(content))] for _ in range(20)]
    start = 8 + int.from_bytes(content[:8], "little")
    for _ in range(100):
        at = chance.randrange(start, len(content))
        damaged.append(content[:at] + bytes([content[at] ^ 1 << chance.randrange(8)]) + content[at + 1 :])
    for each in damaged:
        path.write_bytes(each)
        with pytest.raises(DamagedFile):
            load_checkpoint(path)


def test_a_malicious_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    canary = tmp_path / "canary"

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (canary,)

    path = tmp_path / "a.safetensors"
    torch.save({"state": Evil()}, path)
    with pytest.raises(DamagedFile):
        load_checkpoint(path)
    assert not canary.exists()


def test_other_safetensors_files_and_other_values_are_refused(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(DamagedFile, match="no checkpoint of this toolkit"):
        load_checkpoint(tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"state\.a must be a tensor.*got set"):
        save_checkpoint(tmp_path / "a", {"a": {1}})
    with pytest.raises(InputError, match="keys, got tuple"):
        save_checkpoint(tmp_path / "a", {"a": {(1, 2): 3}})


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path / "a", {"step": 1})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InputError, match="No space left on device; the one before stands"):
        save_checkpoint(tmp_path / "a", {"step": 2})
    assert load_checkpoint(tmp_path / "a") == {"step": 1}
