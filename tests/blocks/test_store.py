import json
import multiprocessing
import random
from pathlib import Path

import pytest
import torch

from nas.blocks.store import BlockRecord, BlockStore, block_key
from nas.errors import DamagedFile, InputError

WEIGHTS = {"w": torch.arange(12.0).reshape(3, 4), "b": torch.ones(3)}
RECORD = BlockRecord("mid", "narrow", {"width": 2}, 0.1, {"h": 0.1}, steps=3)
KEY = block_key(stage="mid", spec={"width": 2})


@pytest.fixture
def store(tmp_path: Path) -> BlockStore:
    store = BlockStore(tmp_path / "blocks")
    store.put(KEY, RECORD, WEIGHTS)
    return store


def _file(store: BlockStore, name: str) -> Path:
    return store.root / KEY[:2] / KEY / name


def test_what_was_put_is_read_back_equal(store: BlockStore) -> None:
    assert KEY in store
    assert list(store.keys()) == [KEY]
    assert store.record(KEY) == RECORD
    assert all(torch.equal(store.weights(KEY)[name], value) for name, value in WEIGHTS.items())


def test_a_block_with_tied_weights_is_stored_whole(store: BlockStore) -> None:
    tied = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 4))
    tied[2].weight = tied[0].weight
    key = block_key(stage="mid", spec={"tied": True})
    store.put(key, RECORD, tied.state_dict())
    assert store.weights(key).keys() == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert all(torch.equal(store.weights(key)[name], value) for name, value in tied.state_dict().items())


def test_every_flipped_byte_of_the_weights_is_detected(store: BlockStore) -> None:
    path = _file(store, "block.safetensors")
    content = path.read_bytes()
    for position in random.Random(0).sample(range(len(content)), 100):
        path.write_bytes(content[:position] + bytes([content[position] ^ 0x10]) + content[position + 1 :])
        with pytest.raises(DamagedFile, match="damaged"):
            store.weights(KEY)


def test_every_truncation_of_the_weights_is_detected(store: BlockStore) -> None:
    path = _file(store, "block.safetensors")
    content = path.read_bytes()
    for length in range(0, len(content), max(1, len(content) // 20)):
        path.write_bytes(content[:length])
        with pytest.raises(DamagedFile):
            store.weights(KEY)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"version": 1}', b"[" * 200_000, b" " * (2 << 20)],
    ids=["empty", "torn", "list", "keys", "deep", "huge"],
)
def test_a_damaged_manifest_is_reported_not_trusted(store: BlockStore, content: bytes) -> None:
    _file(store, "manifest.json").write_bytes(content)
    with pytest.raises(DamagedFile, match="manifest"):
        store.record(KEY)


def test_a_manifest_of_another_key_is_not_trusted(store: BlockStore) -> None:
    path = _file(store, "manifest.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"key": "0" * 40}))
    with pytest.raises(DamagedFile):
        store.weights(KEY)


def test_drop_moves_the_block_aside_and_destroys_nothing(store: BlockStore) -> None:
    store.drop(KEY)
    assert KEY not in store
    assert list(store.keys()) == []
    assert len(list(store.root.glob("??/*.damaged-*/block.safetensors"))) == 1


def test_a_store_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "blocks").write_text("a file where the folder should be")
    with pytest.raises(InputError, match=r"cannot write block to .* set NAS_HOME"):
        BlockStore(tmp_path / "blocks").put(KEY, RECORD, WEIGHTS)


def _race(root: Path, number: int) -> None:
    BlockStore(root).put(KEY, BlockRecord("mid", f"writer{number}", {}, 0.0), {"w": torch.full((1000,), float(number))})


def test_processes_that_race_on_one_block_leave_one_valid_file(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for attempt in range(10):
        root = tmp_path / str(attempt)
        writers = [context.Process(target=_race, args=(root, number)) for number in range(3)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        store = BlockStore(root)
        number = int(store.record(KEY).choice.removeprefix("writer"))
        assert store.weights(KEY)["w"].unique().tolist() == [float(number)]
        assert [path.name for path in (root / KEY[:2]).iterdir()] == [KEY]
