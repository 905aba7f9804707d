"""Every file format we read, damaged in a thousand ways: it is read, or refused with an error of ours; nothing else escapes."""

import contextlib
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from typer.main import get_command

from nas.blocks.store import BlockRecord, BlockStore, block_key
from nas.checkpoint import load_checkpoint, save_checkpoint
from nas.cli.app import app
from nas.cli.options import configure
from nas.doctor import examine
from nas.errors import NasError
from nas.evaluators.cache import EvaluationCache
from nas.files import damage, write_manifest
from nas.progress import Quiet
from nas.record import Record
from nas.run_directory import RunDirectory
from nas.spaces.tocsr import counts
from nas.spaces.tocsr.data import load_pictures
from nas.summary import summarize
from nas.table import read_table
from nas.trial import Trial
from tests.fuzz.mutations import damaged_bytes, damaged_values

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

N = 1000
KEY = block_key(stage="a")
TABLE = {
    "stages": [{"name": "a", "choices": [{"name": "teacher", "params": 2, "calibration_error": 0.0}, {"name": "b", "params": 1, "calibration_error": None}]}],
    "fixed": {"params": 1},
}  # fmt: skip
CONFIG: dict[str, Any] = {
    "space": {"name": "demo"},
    "search": {"eps": [0.1], "minimize": "params", "where": ["params<=50%"], "seed": 0},
    "fingerprints": {"a": "b"},
}
RESULT: dict[str, Any] = {
    "space": "demo", "teacher": {"params": 3}, "n_trials": 1, "n_measured": 1, "stopped": "proof", "statements": [], "run": "runs/x",
    "seconds": {"calibrate": 0.0, "measure": 0.0, "propose": 0.0, "total": 0.0},
    "winners": [{"eps": 0.1, "feasible": True, "candidate": {"a": "b"}, "params": 2, "divergence": 0.0, "stderr": 0.0, "n_samples": 1,
                 "heldout_divergence": None, "path": "winner"}],
}  # fmt: skip


@contextlib.contextmanager
def only_our_errors(shown: object) -> Iterator[None]:
    """Lets an error of ours pass; anything else is told together with what caused it."""
    try:
        yield
    except NasError as error:
        if "\n" in str(error):
            raise AssertionError(f"more than one line: {error}") from error
    except Exception as error:
        raise AssertionError(f"{type(error).__name__}: {error}, from {shown!r:.2000}") from error


def fuzz(path: Path, read: Callable[[], object], *, values: Any = None, n: int = N, render: Callable[[Any], bytes] = lambda v: json.dumps(v).encode()) -> None:
    """Damages the file `n` times: its bytes, and for half of them the values in it if these are given."""
    content = path.read_bytes()
    read()
    for each in damaged_bytes(content, n // 2 if values is not None else n):
        path.write_bytes(each)
        with only_our_errors(each):
            read()
    for value in damaged_values(values, n // 2) if values is not None else ():
        path.write_bytes(render(value))
        with only_our_errors(value):
            read()
    path.write_bytes(content)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path / "run")
    run.create(CONFIG)
    with run.record() as record:
        record.set_fact("table", TABLE)
        record.set_fact("seconds", {"calibrate": 0.5, "total": 1.0})
        for number in range(2):
            record.add(Trial(number, (number,), {"params": 3.0}, 0.25, 0.01, 128, 0.5))
    return run


def test_run_toml(run: RunDirectory) -> None:
    def read() -> None:
        with run.record(read_only=True) as record:
            run.config()
            summarize(run, record)

    def render(value: Any) -> bytes:
        lines = []
        for section, entries in value.items() if isinstance(value, dict) else ():
            lines.append(f"[{json.dumps(section)}]")
            lines += [f"{json.dumps(key)} = {json.dumps(entry)}" for key, entry in entries.items()] if isinstance(entries, dict) else [json.dumps(entries)]
        return "\n".join(lines).encode()

    fuzz(run.path / "run.toml", read, values=CONFIG, render=render)


def test_the_bytes_of_a_record(run: RunDirectory) -> None:
    def read() -> None:
        with run.record(read_only=True) as record:
            record.trials()
            for name in record.facts():
                record.fact(name)
            summarize(run, record)

    (run.path / "study.db-wal").unlink(missing_ok=True)
    fuzz(run.path / "study.db", read)


def test_doctor_on_a_damaged_record(run: RunDirectory, tmp_path: Path) -> None:
    fuzz(run.path / "study.db", lambda: examine(run, tmp_path / "blocks"), n=N // 4)


def test_facts_of_a_record_with_valid_checksums(run: RunDirectory) -> None:
    from nas.cli.results import print_result

    def check(result: Any, table: Any) -> None:
        with Record() as record, only_our_errors((result, table)), contextlib.redirect_stdout(io.StringIO()):
            record.set_fact("result", result)
            record.set_fact("table", table)
            print_result(summarize(run, record), record.fact("table"))

    check(RESULT, TABLE)
    for result, table in zip(damaged_values(RESULT, N), damaged_values(TABLE, N), strict=True):
        check(result, TABLE)
        check(RESULT, table)


def test_rows_of_a_record_with_valid_checksums(run: RunDirectory) -> None:
    row = {"candidate": [1], "costs": {"params": 3.0}, "attrs": {}}
    for value in damaged_values(row, N):
        with Record() as record, only_our_errors(value):
            record.set_fact("table", TABLE)
            given = value if isinstance(value, dict) else {}
            trial = Trial(0, given.get("candidate"), {}, 0.25, attrs={})  # type: ignore[arg-type]
            with contextlib.suppress(TypeError, ValueError, OverflowError):  # what json cannot write never gets there
                object.__setattr__(trial, "costs", given.get("costs") or {})
                record.add(trial)
            record.trials()
            summarize(run, record)


def test_configuration_file(tmp_path: Path) -> None:
    path = tmp_path / "nas.toml"
    path.write_text('[search]\ntrials = 2\noptimizer = "random"\neps = [0.5]\nkeep-dominated = true\n')
    command = get_command(app).commands["search"]  # type: ignore[attr-defined]
    fuzz(path, lambda: configure(typer.Context(command, info_name="search"), path))


def test_manifest_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"0123")
    write_manifest(tmp_path)
    path = tmp_path / "manifest.json"
    fuzz(path, lambda: damage(tmp_path), values=json.loads(path.read_text()))


def test_manifest_and_weights_of_a_block(tmp_path: Path) -> None:
    store = BlockStore(tmp_path)
    store.put(KEY, BlockRecord("a", "small", {"k": [1]}, 0.1, {"h": 0.1}), {"w": torch.ones(3)})
    path = tmp_path / KEY[:2] / KEY / "manifest.json"
    fuzz(path, lambda: (store.record(KEY), store.weights(KEY)), values=json.loads(path.read_text()))
    fuzz(path.with_name("block.safetensors"), lambda: store.weights(KEY))


def test_weights_of_a_block_whose_manifest_vouches_for_them(tmp_path: Path) -> None:
    import hashlib

    store = BlockStore(tmp_path)
    store.put(KEY, BlockRecord("a", "small", {}, 0.1), {"w": torch.ones(3), "b": torch.zeros(2, 2)})
    folder = tmp_path / KEY[:2] / KEY
    manifest = json.loads((folder / "manifest.json").read_text())
    for content in damaged_bytes((folder / "block.safetensors").read_bytes(), N):
        (folder / "block.safetensors").write_bytes(content)
        (folder / "manifest.json").write_text(json.dumps({**manifest, "sha256": hashlib.sha256(content).hexdigest()}))
        with only_our_errors(content):
            store.weights(KEY)


def test_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, {"w": torch.ones(3), "step": 3, "more": [1, (2.0, None), {"a": torch.zeros(2)}]})
    fuzz(path, lambda: load_checkpoint(path))


def test_table(tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    np.savez(path, sizes=np.array([2, 2]), divergence=np.arange(4.0), cost_params=np.ones((2, 2)), fixed_params=np.array(7.0))
    fuzz(path, lambda: read_table(path))


def test_evaluation_cache(tmp_path: Path) -> None:
    path = tmp_path / "evaluations.db"
    for number in range(5):
        EvaluationCache(path).put(f"k{number}", np.arange(4.0))
    fuzz(path, lambda: EvaluationCache(path).get("k2"), n=N)


def test_table_of_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counts, "_count", lambda name: {"counted": "again"})
    cost = dict.fromkeys(counts.METRICS, 1)
    table = {
        "scale": "sd15", "library": "default", "stages": [{"name": "a", "choices": [{"name": "teacher", **cost}]}], "fixed": cost, "teacher": cost,
        "n_candidates": 1, "reach": {"params": [1, 2]}, "near": {"130M": 1},
    }  # fmt: skip
    path = tmp_path / f"sd15-default-{counts._key()}.json"
    path.write_text(json.dumps(table))
    assert counts.full_size_table("default", tmp_path) == table
    content = path.read_bytes()
    for value in damaged_values(table, N):
        path.write_text(json.dumps(value))
        found = counts.full_size_table("default", tmp_path)
        assert found == {"counted": "again"} or set(table) <= set(found)
    path.write_bytes(content)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tif"])
def test_pictures(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8)).save(path)
    fuzz(path, lambda: load_pictures([path], 16, Quiet()), n=N)
