"""The training loop: what a step is, that stopping changes nothing, and what is refused."""

import math
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Generator, Tensor, nn

from nas.checkpoint import load_checkpoint
from nas.errors import DamagedFile, InputError, RunMismatch
from nas.progress import Quiet
from nas.spaces.tocsr.resources import leads, own_device
from nas.spaces.tocsr.trainer import Trainer, TrainingSettings, seeded


def draw(random: Generator, n: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(n, 3, generator=random)
    return x, x @ torch.tensor([[1.0], [2.0], [-1.0]])


def loss(module: nn.Module, batch: tuple[Tensor, Tensor], random: Generator) -> Tensor:
    x, y = batch
    error: Tensor = module(x) - y + 0.1 * torch.randn(y.shape, generator=random)
    return error.float().square().mean()


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def trainer(module: nn.Module, **changes: object) -> Trainer:
    settings = TrainingSettings(**{"steps": 12, "batch": 8, "rate": 1e-2, **changes})  # type: ignore[arg-type]
    return Trainer(module, draw, loss, settings, origin={"data": "lines"})


def evaluate(module: nn.Module) -> dict[str, float]:
    return {"bias": float(next(iter(module.parameters())).detach().sum())}


class Killed(Exception):
    pass


def killed_at(number: int) -> object:
    """A loss that stops the process's work at a batch, as a signal might."""
    calls = 0

    def dying(module: nn.Module, batch: tuple[Tensor, Tensor], random: Generator) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > number:
            raise Killed
        return loss(module, batch, random)

    return dying


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_training_that_was_stopped_ends_as_if_it_had_not_been(tmp_path: Path, accumulate: int) -> None:
    whole, stopped = network(), network()
    curve = trainer(whole, accumulate=accumulate).run(tmp_path / "whole", evaluate, every=4)
    first = trainer(stopped, accumulate=accumulate, save_s=0)
    first._loss = killed_at(7)  # type: ignore[assignment]
    with pytest.raises(Killed):
        first.run(tmp_path / "part", evaluate, every=4)
    again = network()
    assert trainer(again, accumulate=accumulate).run(tmp_path / "part", evaluate, every=4) == curve
    assert [row["step"] for row in curve] == [0, 4, 8, 12]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
    finished = network()
    assert trainer(finished, accumulate=accumulate).run(tmp_path / "part", evaluate, every=4) == curve
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), finished.parameters(), strict=True))


def test_whoever_logs_trainings_gets_every_row_of_the_curve(tmp_path: Path) -> None:
    seen: list[tuple[dict[str, float], int]] = []

    class Logged(Quiet):
        def scalars(self, values: Mapping[str, float], step: int) -> None:
            seen.append((dict(values), step))

    curve = trainer(network()).run(tmp_path / ".tuned-1.checkpoint", evaluate, every=4, progress=Logged())
    wanted = [{f"tuned-1/{name}": value for name, value in row.items() if name != "step" and value is not None} for row in curve]
    assert seen == [(values, row["step"]) for values, row in zip(wanted, curve, strict=True)]


def test_the_gradient_of_a_step_is_the_mean_over_its_batches(tmp_path: Path) -> None:
    module, expected = network(), network()
    trainer(module, steps=1, accumulate=3, clip=math.inf, decay=0.0).run(tmp_path / "c")
    optimizer = torch.optim.AdamW(expected.parameters(), lr=1e-2, weight_decay=0.01)
    for number in range(3):
        random = seeded(0, number)
        (loss(expected, draw(random, 8), random) / 3).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    for a, b in zip(module.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_the_module_ends_with_the_exponential_average_of_its_weights(tmp_path: Path) -> None:
    module, seen = network(), []

    class Watched(Trainer):
        def _advance(self, network: nn.Module, batches: object) -> None:
            super()._advance(network, batches)  # type: ignore[arg-type]
            seen.append(next(iter(self.module.parameters())).detach().clone())

    Watched(module, draw, loss, TrainingSettings(steps=6, batch=4, rate=1e-2, average=0.3)).run(tmp_path / "c")
    average = seen[0]
    for number, value in enumerate(seen[1:], start=1):
        decay = min((1 + number) / (10 + number), 0.3)
        average = decay * average + (1 - decay) * value
    torch.testing.assert_close(next(iter(module.parameters())).detach(), average)


def test_frozen_parameters_stay_and_are_not_saved(tmp_path: Path) -> None:
    module = network()
    module[0].requires_grad_(False)  # type: ignore[index]
    before = module[0].weight.clone()  # type: ignore[index]
    run = trainer(module)
    run.run(tmp_path / "c")
    assert torch.equal(module[0].weight, before)  # type: ignore[index]
    assert set(run._trained()) == {"2.weight", "2.bias"}


def test_bf16_trains_and_leaves_the_module_as_it_was_wrapped(tmp_path: Path) -> None:
    module = network()
    curve = trainer(module, precision="bf16", steps=60, rate=3e-2).run(tmp_path / "c", evaluate, every=10)
    assert curve[-1]["loss"] < 0.7 * curve[1]["loss"]  # type: ignore[operator]
    assert module(torch.zeros(1, 3)).dtype == torch.float32
    assert "forward" not in vars(module)
    assert next(module.parameters()).dtype == torch.float32


def test_a_checkpoint_of_other_settings_or_data_is_refused(tmp_path: Path) -> None:
    trainer(network(), steps=2).run(tmp_path / "c")
    with pytest.raises(RunMismatch, match=r"was made with rate 0\.01, now it is 0\.1"):
        trainer(network(), rate=0.1).run(tmp_path / "c")
    with pytest.raises(RunMismatch, match="data"):
        Trainer(network(), draw, loss, TrainingSettings(steps=2, batch=8, rate=1e-2), origin={"data": "others"}).run(tmp_path / "c")
    assert trainer(network(), steps=4).run(tmp_path / "c") == []
    with pytest.raises(RunMismatch, match=r"has taken 4 steps, more than the 3 asked for; give at least as many"):
        trainer(network(), steps=3).run(tmp_path / "c")
    (tmp_path / "c").write_bytes(b"torn")
    with pytest.raises(DamagedFile, match="remove it to start afresh"):
        trainer(network()).run(tmp_path / "c")


def test_a_loss_that_is_no_number_ends_with_a_line_that_says_where(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="became nan at step 1, rate"):
        Trainer(network(), draw, lambda m, b, r: loss(m, b, r) * math.nan, TrainingSettings(steps=2)).run(tmp_path / "c")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"rate": math.inf}, "rate must be"),
        ({"average": 1.0}, "average must lie"),
        ({"precision": "int8"}, "precision must"),
        ({"steps": 2.5}, "steps must be a whole number"),
        ({"warmup": -1}, "warmup must be at least 0"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"clip": math.nan}, "clip must be at least 0, got nan"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TrainingSettings(**{"steps": 1, **wrong})  # type: ignore[arg-type]


def test_fp16_needs_a_gpu() -> None:
    with pytest.raises(InputError, match="fp16 needs a GPU"):
        Trainer(network(), draw, loss, TrainingSettings(steps=1, precision="fp16"))


@pytest.mark.slow
def test_two_processes_share_the_batches_of_a_step_and_compute_what_one_does(tmp_path: Path) -> None:
    code = (
        "import sys, torch; from pathlib import Path; torch.set_num_threads(1); from tests.spaces.tocsr.test_trainer import *;"
        "module = network(); trainer(module, accumulate=4).run(Path(sys.argv[1]), evaluate, every=5)"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-c", code, str(tmp_path / "two")]
    workers = [subprocess.Popen(command, env={**shared, "RANK": rank, "LOCAL_RANK": rank}) for rank in "01"]
    module = network()
    curve = trainer(module, accumulate=4).run(tmp_path / "one", evaluate, every=5)
    assert [worker.wait(120) for worker in workers] == [0, 0]
    two = load_checkpoint(tmp_path / "two")
    for key, value in load_checkpoint(tmp_path / "one")["module"].items():
        torch.testing.assert_close(two["module"][key], value, rtol=1e-5, atol=1e-7)
    assert [row["step"] for row in two["curve"]] == [row["step"] for row in curve] == [0, 5, 10, 12]


def test_of_several_processes_the_first_reports_and_each_has_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert leads()
    assert own_device("cuda") == "cuda:0"
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert not leads()
    assert [own_device(device) for device in ("cuda", "cuda:3", "cpu")] == ["cuda:1", "cuda:3", "cpu"]


def test_too_little_memory_or_disk_is_said_before_the_work_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=10))
    with pytest.raises(InputError, match=r"training .* parameters needs .*B of memory on 'cpu'.* use another device"):
        trainer(network())
    monkeypatch.undo()
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(InputError, match=r"training needs .*B on disk for its checkpoints, .* has 10B free"):
        trainer(network()).run(tmp_path / "sub" / "checkpoint")
