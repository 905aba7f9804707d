"""Faults that are really injected: disks that are full, processes that race, settings and inputs that changed."""

import contextlib
import itertools
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nas.blocks.store import BlockRecord, BlockStore, block_key
from nas.checkpoint import load_checkpoint, save_checkpoint
from nas.data import Samples
from nas.errors import InputError, NasError, RunInUse, RunMismatch
from nas.evaluators.cache import EvaluationCache
from nas.evaluators.divergence import DivergenceEvaluator, Settings
from nas.files import copy_whole, write_whole
from nas.graph import StageGraph, Step
from nas.job import search
from nas.problem import CostTable
from nas.progress import Quiet
from nas.run_directory import RunDirectory
from nas.table import Table, read_table, write_table
from nas.trial import Trial
from tests.core.test_cli import nas

CONFIG = {"space": {"name": "demo"}, "search": {"eps": [0.1]}}
KEY = block_key(stage="a")


def with_files_of_at_most(nbytes: int, work: Callable[[], object]) -> str:
    """What the work complains of in a process whose files may not grow beyond so many bytes; "done" if of nothing."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        torch.set_num_threads(1)  # threads do not survive a fork; without any there is nothing to wait for
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, nbytes))
        try:
            work()
            said = "done"
        except NasError as error:
            said = f"error: {error}"
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writer, said.encode()[:4000])
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    return said


def trial(number: int) -> Trial:
    return Trial(number, (number,), {"params": 3.0}, 0.25, attrs={"note": "x" * 500})


@pytest.mark.parametrize("limit", [0, 4096, 20_000, 60_000])
def test_a_full_disk_while_trials_are_recorded_loses_none_that_was_acknowledged(tmp_path: Path, limit: int) -> None:
    run = RunDirectory(tmp_path / "run")
    run.create(CONFIG)
    with run.record() as record:
        for number in range(3):
            record.add(trial(number))
    acknowledged, acknowledge = os.pipe()

    def work() -> None:
        with run.record() as record:
            for number in range(3, 200):
                record.add(trial(number))
                os.write(acknowledge, b".")

    said = with_files_of_at_most(limit, work)
    assert said.startswith("error: cannot "), said
    os.close(acknowledge)
    with run.record() as record:  # the disk has room again
        kept = len(record.trials())
        assert kept >= 3 + len(os.read(acknowledged, 1000))
        record.add(trial(kept))
        assert len(record.trials()) == kept + 1


def test_a_full_disk_at_every_other_place_we_write_is_one_clear_line_and_keeps_what_was_there(tmp_path: Path) -> None:
    store = BlockStore(tmp_path / "blocks")
    table = Table((100,), np.arange(100.0), CostTable({"params": np.ones((1, 100))}))
    big = {"w": torch.randn(100, 100)}
    checkpoint = tmp_path / "checkpoint"
    save_checkpoint(checkpoint, {"step": 1})
    cache = tmp_path / "evaluations.db"
    EvaluationCache(cache).put("k", np.arange(3.0))
    places: dict[str, Callable[[], object]] = {
        "block": lambda: store.put(KEY, BlockRecord("a", "small", {}, 0.1), big),
        "table": lambda: write_table(tmp_path / "t.npz", table),
        "checkpoint": lambda: save_checkpoint(checkpoint, big),
        "cache": lambda: [EvaluationCache(cache).put(f"k{n}", np.arange(500.0)) for n in range(50)],
        "run.toml": lambda: RunDirectory(tmp_path / "run").create(CONFIG),
    }
    for name, work in places.items():
        said = with_files_of_at_most(10, work)
        assert said.startswith("error: cannot "), f"{name}: {said}"
        assert str(tmp_path) in said
    assert KEY not in store
    assert not (tmp_path / "t.npz").exists()
    assert load_checkpoint(checkpoint) == {"step": 1}
    assert EvaluationCache(cache).get("k").tolist() == [0.0, 1.0, 2.0]
    for name, work in places.items():
        assert with_files_of_at_most(10**9, work) == "done", name
    assert read_table(tmp_path / "t.npz").sizes == (100,)
    assert torch.equal(store.weights(KEY)["w"], big["w"])


def test_a_full_disk_while_a_winner_is_exported_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    winner = tmp_path / "winner"
    (winner / "deep").mkdir(parents=True)
    (winner / "a").write_bytes(b"x")
    (winner / "deep/weights").write_bytes(b"x" * 1000)
    (tmp_path / "to").mkdir()

    def work() -> None:
        try:
            copy_whole(winner, tmp_path / "to/x")
        except OSError as error:
            raise InputError(error.strerror) from error

    assert with_files_of_at_most(100, work) == "error: File too large"
    assert list((tmp_path / "to").iterdir()) == []
    assert with_files_of_at_most(10**6, work) == "done"
    assert sorted(path.name for path in (tmp_path / "to/x").rglob("*")) == ["a", "deep", "manifest.json", "weights"]


def test_a_draft_never_stays_under_the_final_name(tmp_path: Path) -> None:
    def work() -> None:
        with contextlib.suppress(OSError):
            write_whole(tmp_path / "a", b"x" * 1000)

    assert with_files_of_at_most(100, work) == "done"
    assert list(tmp_path.iterdir()) == []


def test_of_two_searches_started_at_once_exactly_one_runs(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.create(CONFIG)
    context = multiprocessing.get_context("fork")
    for _ in range(20):
        start, done, answers = context.Barrier(2), context.Barrier(2), context.SimpleQueue()

        def hold(start: Any, done: Any, answers: Any) -> None:
            start.wait()
            try:
                with run.lock():
                    answers.put("runs")
                    done.wait()
            except RunInUse as error:
                answers.put(str(error))
                done.wait()

        pair = [context.Process(target=hold, args=(start, done, answers)) for _ in range(2)]
        for process in pair:
            process.start()
        said = sorted(answers.get() for _ in pair)
        for process in pair:
            process.join()
        assert said[1] == "runs"
        assert "is in use by" in said[0]


def test_a_run_in_use_is_not_moved_aside_by_a_new_one(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.create(CONFIG)
    with run.lock(), pytest.raises(RunInUse):
        RunDirectory(run.path).reset()
    assert (run.path / "run.toml").exists()


def _put(root: Path, barrier: Any, number: int) -> None:
    barrier.wait()
    BlockStore(root).put(KEY, BlockRecord("a", "small", {}, float(number)), {"w": torch.full((50, 50), float(number))})


def test_fifty_races_on_one_block_leave_one_valid_file_each(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for number in range(50):
        root = tmp_path / str(number)
        barrier = context.Barrier(2)
        pair = [context.Process(target=_put, args=(root, barrier, k)) for k in range(2)]
        for process in pair:
            process.start()
        for process in pair:
            process.join()
        assert [process.exitcode for process in pair] == [0, 0]
        store = BlockStore(root)
        record, weights = store.record(KEY), store.weights(KEY)["w"]
        assert (weights == record.error).all()
        assert sorted(path.name for path in root.rglob("*") if path.is_file()) == ["block.safetensors", "manifest.json"]


TOY = f"{Path(__file__).parent / 'toy_space.py'}:make_space"


class Listener(Quiet):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_a_search_that_meets_a_damaged_block_says_so_in_one_line_fits_it_again_and_ends_the_same(home: Path, tmp_path: Path) -> None:
    def searched(name: str) -> tuple[list[str], list[Any], bytes]:
        listener = Listener()
        result = search(TOY, 0.05, workdir=tmp_path, name=name, optimizer="random", trials=3, progress=listener)
        return listener.notes, [(t.candidate, t.divergence) for t in result.study.trials], block.read_bytes()

    block = tmp_path / "none yet"
    block.touch()
    _, trials, _ = searched("whole")
    block = sorted((home / "blocks").rglob("block.safetensors"))[0]
    content = block.read_bytes()
    for number, damaged in enumerate((b"", content[:100], content[:-1], content[:-1] + bytes([content[-1] ^ 1]))):
        block.write_bytes(damaged)
        notes, again, now = searched(f"run{number}")
        told = [note for note in notes if "is damaged" in note]
        assert len(told) == 1
        assert str(block) in told[0]
        assert "\n" not in told[0]
        assert (again, now) == (trials, content)
    aside = [path for path in (home / "blocks").rglob("*.damaged-*") if path.is_dir()]
    assert len(aside) == 4


CHANGES: list[tuple[str, dict[str, Any]]] = [
    ("search.eps", {"eps": 0.004}),
    ("search.optimizer", {"optimizer": "evolution"}),
    ("search.seed", {"seed": 1}),
    ("search.minimize", {"minimize": "params"}),
    ("search.where", {"where": ("params<=90%",)}),
    ("search.delta", {"delta": 0.5}),
    ("search.keep_dominated", {"keep_dominated": True}),
    ("space.name", {"space": "synthetic:4"}),
]


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("runs")
    search("synthetic:3", 0.003, workdir=workdir, name="run", optimizer="random", trials=3)
    return workdir


@pytest.mark.parametrize(("name", "change"), CHANGES, ids=[name for name, _ in CHANGES])
def test_a_run_is_not_gone_on_with_under_other_settings(searched: Path, name: str, change: dict[str, Any]) -> None:
    asked: dict[str, Any] = {"space": "synthetic:3", "eps": 0.003, "optimizer": "random", **change}
    with pytest.raises(RunMismatch, match=rf"another configuration \(.*{name}: .* there, .* now.*--new"):
        search(asked.pop("space"), asked.pop("eps"), workdir=searched, name="run", trials=3, **asked)


def test_more_trials_and_a_moved_copied_or_renamed_directory_go_on(searched: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "müller 漢字 ' copy"
    shutil.copytree(searched / "run", copy / "rün")
    result = search("synthetic:3", 0.003, workdir=copy, name="rün", optimizer="random", trials=5)
    assert len(result.study.trials) == 5
    with RunDirectory(searched / "run").record(read_only=True) as record:
        assert [t.candidate for t in record.trials()] == [t.candidate for t in result.study.trials[:3]]
    assert nas("show", str(copy / "rün")).returncode == 0


def test_a_clock_that_goes_back_and_another_host_name_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = search("synthetic:3", 0.003, workdir=None, optimizer="random", trials=6)
    search("synthetic:3", 0.003, workdir=tmp_path, name="run", optimizer="random", trials=3)
    back = itertools.count(int(time.time()) - 10**8, -1000)
    monkeypatch.setattr("time.time", lambda: float(next(back)))
    monkeypatch.setattr("socket.gethostname", lambda: "elsewhere")
    result = search("synthetic:3", 0.003, workdir=tmp_path, name="run", optimizer="random", trials=6)
    assert [(t.candidate, t.divergence) for t in result.study.trials] == [(t.candidate, t.divergence) for t in whole.study.trials]
    assert all(seconds >= 0 for seconds in result.seconds.values())


def evaluator(cache: EvaluationCache, **changes: Any) -> DivergenceEvaluator:
    """A one-stage evaluator; `changes` replace what decides its values."""
    torch.manual_seed(0)
    linear, other = nn.Linear(4, 4), nn.Linear(4, 4)
    x = torch.randn(8, 4) + changes.get("data", 0.0)
    graph = StageGraph(("x",), (Step("a", ("x",), ("y",), linear),), "y")
    keys = [["teacher", changes.get("block", "block")]]
    samples = Samples({"x": x.to(changes.get("dtype", torch.float32))}, torch.arange(8))
    graph = StageGraph(("x",), (Step("a", ("x",), ("y",), linear.to(samples.inputs["x"].dtype)),), "y")
    return DivergenceEvaluator(
        graph, ["a"], [[linear, other.to(samples.inputs["x"].dtype)]], keys, samples, identity=changes.get("teacher", "teacher"), cache=cache,
        divergence=changes.get("metric", _squares), settings=Settings(chunk=changes.get("chunk", 4)),
    )  # fmt: skip


def _squares(teacher: torch.Tensor, candidate: torch.Tensor) -> torch.Tensor:
    return (teacher - candidate).square().flatten(1).mean(1)


def _magnitudes(teacher: torch.Tensor, candidate: torch.Tensor) -> torch.Tensor:
    return (teacher - candidate).abs().flatten(1).mean(1)


@pytest.mark.parametrize(
    "change",
    [{"data": 1.0}, {"block": "other"}, {"teacher": "other"}, {"metric": _magnitudes}, {"chunk": 8}, {"dtype": torch.float64}],
    ids=["data", "block", "teacher", "metric", "chunk", "type"],
)
def test_every_changed_input_misses_the_cache_and_nothing_changed_hits_it(tmp_path: Path, change: dict[str, Any]) -> None:
    cache = EvaluationCache(tmp_path / "evaluations.db")
    assert not evaluator(cache).measure([(1,)])[0].cached
    assert evaluator(cache).measure([(1,)])[0].cached
    assert not evaluator(cache, **change).measure([(1,)])[0].cached


def test_a_new_version_of_the_metric_misses_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = EvaluationCache(tmp_path / "evaluations.db")
    evaluator(cache).measure([(1,)])
    monkeypatch.setattr("nas.evaluators.divergence._VERSION", 2)
    assert not evaluator(cache).measure([(1,)])[0].cached


def command(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[bytes]":
    code = [sys.executable, "-c", "from nas.cli.app import main; main()", *arguments]
    return subprocess.run(code, capture_output=True, check=False, env={**os.environ, **environment})


def test_a_locale_without_our_characters_costs_the_characters_only(searched: Path) -> None:
    ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": ""}
    done = command("show", str(searched / "run"), **ascii_only)
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert b"teacher and winners" in done.stdout


def test_a_path_that_is_no_unicode_is_shown_and_refused_where_it_cannot_be_written(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/r\xfcn"
    done = command("show", os.fsdecode(folder))
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr
    run = RunDirectory(Path(os.fsdecode(folder)))
    with pytest.raises(NasError, match="must be Unicode text"):
        run.create({"space": {"name": os.fsdecode(folder)}, "search": {"eps": [0.1]}})
