"""`nas cache`: what is kept is listed, checked and removed."""

import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nas.blocks.store import BlockRecord, BlockStore, block_key
from nas.errors import DamagedFile, InputError
from nas.evaluators.cache import EXPECTED, EvaluationCache
from tests.core.test_cli import nas


@pytest.fixture
def store(home: Path) -> BlockStore:
    """Three blocks, one failed, two measured candidates and losses foreseen."""
    store = BlockStore(home / "blocks")
    for number, error in enumerate((0.1, 0.2, None)):
        record = BlockRecord("mid", f"c{number}", {}, error, reason="" if error else "loss became nan at step 3")
        store.put(block_key(number=number), record, {"w": torch.full((4,), float(number))})
    cache = EvaluationCache(home / "evaluations.db")
    cache.put("a", np.ones(3))
    cache.put("b", np.ones(5))
    cache.put(f"{EXPECTED}c", np.ones(16))
    return store


def said(*arguments: str, code: int = 0) -> dict[str, Any]:
    done = nas("cache", *arguments, "--json")
    assert done.returncode == code, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_list_names_every_block_and_counts_measured_values(store: BlockStore) -> None:
    found = said("list")
    assert {block["choice"]: block["error"] for block in found["blocks"]} == {"c0": 0.1, "c1": 0.2, "c2": None}
    assert (found["evaluations"]["candidates"], found["evaluations"]["values"]) == (2, 8)
    assert "loss became nan at step 3" in nas("cache", "list").stdout


def test_an_empty_cache_is_listed_verified_and_pruned(home: Path) -> None:
    assert said("list")["blocks"] == []
    assert said("verify")["blocks"] == 0
    assert said("prune", "--all")["removed"] == []
    assert not home.exists()


def test_verify_finds_what_is_damaged_and_prune_removes_only_that(store: BlockStore, home: Path) -> None:
    assert said("verify")["damaged_blocks"] == {}
    damaged = store.folder(block_key(number=1))
    (damaged / "block.safetensors").write_bytes(b"x")
    with sqlite3.connect(home / "evaluations.db") as db:
        db.execute("INSERT INTO divergences VALUES ('bad', ?, ?)", (np.array([1.0]).tobytes(), b"0" * 16))
    shutil.copytree(store.folder(block_key(number=0)), store.folder(block_key(number=0)).with_suffix(".damaged-20260101-000000-1"))
    found = said("verify", code=2)
    assert list(found["damaged_blocks"]) == [damaged.name]
    assert found["damaged_evaluations"] == ["bad"]
    assert len(found["leftovers"]) == 1
    assert len(said("prune", "--dry-run")["removed"]) == 2
    assert damaged.exists()
    assert len(said("prune")["removed"]) == 2
    assert said("verify")["blocks"] == 2


def test_prune_removes_what_the_options_name(store: BlockStore, home: Path) -> None:
    assert len(said("prune", "--failed")["removed"]) == 1
    assert said("prune", "--older-than", "1")["removed"] == []
    assert said("prune", "--evaluations")["evaluations"] == 2
    assert len(EvaluationCache(home / "evaluations.db").get(f"{EXPECTED}c")) == 0
    assert len(said("prune", "--all")["removed"]) == 2
    assert said("list")["blocks"] == []


def test_every_flipped_bit_of_a_value_is_found_and_the_value_measured_again(home: Path) -> None:
    cache = EvaluationCache(home / "evaluations.db")
    for bit in range(128):
        cache.put("k", np.array([-0.5, 2.0]))
        changed = bytearray(np.array([-0.5, 2.0]).tobytes())
        changed[bit // 8] ^= 1 << bit % 8
        cache._db.execute("UPDATE divergences SET samples = ?", (bytes(changed),))
        assert cache.damaged() == ["k"]
        assert len(cache.get("k")) == 0
    cache.put("k", np.array([-0.5, 2.0]))
    assert cache.get("k").tolist() == [-0.5, 2.0]


def test_a_file_that_is_no_cache_is_named(home: Path) -> None:
    home.mkdir()
    (home / "evaluations.db").write_bytes(b"something else" * 100)
    with pytest.raises(DamagedFile, match=r"evaluations\.db is damaged .*remove it"):
        EvaluationCache(home / "evaluations.db")


def test_a_cache_that_cannot_be_written_says_what_to_do(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = EvaluationCache(home / "evaluations.db")
    cache._db.execute("PRAGMA max_page_count = 3")  # as if the disk were full
    with pytest.raises(InputError, match="full; set NAS_HOME to a writable folder with space"):
        cache.put("key", np.ones(100_000))
    cache._db.execute("PRAGMA query_only = 1")
    with pytest.raises(InputError, match="readonly"):
        cache.put("key", np.ones(1))
