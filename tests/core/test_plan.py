import json
from pathlib import Path

import pytest

from nas.names import resolve_space
from nas.progress import Quiet
from tests.core.test_cli import nas

TOY = f"{Path(__file__).parent / 'toy_space.py'}:make_space"


def test_a_plan_tells_costs_work_time_memory_and_disk(home: Path) -> None:
    done = nas("plan", "--space", TOY, "--eps", "0.1", "--where", "macs<=80%", "--where", "memory_mb<=90%", "--json", "--quiet")
    assert done.returncode == 0, done.stderr
    planned = json.loads(done.stdout)
    space = resolve_space(TOY)
    teacher = space.costs().of((0, 0, 0))
    assert planned["costs"]["macs"]["teacher"] == teacher["macs"]
    assert planned["costs"]["macs"]["bound"] == pytest.approx(0.8 * teacher["macs"])
    assert planned["costs"]["memory_mb"]["teacher"] == pytest.approx(4 * teacher["params"] / 1e6)
    assert planned["least_objective"] == space.costs().reach("params")[0]
    assert planned["satisfiable"]
    forecast = planned["forecast"]
    assert (forecast["blocks"], forecast["missing"]) == (6, 6)
    assert forecast["samples"] == {"fit": 128, "measure": 128, "verify": 128}
    assert all(forecast[key] > 0 for key in ("calibrate_s", "measure_s", "total_s", "weights_mb", "features_mb", "activation_mb", "disk_mb"))
    assert not (home / "blocks").exists()


def test_nothing_is_left_to_calibrate_once_blocks_are_there(home: Path) -> None:
    resolve_space(TOY).prepare(Quiet())
    forecast = json.loads(nas("plan", "--space", TOY, "--json").stdout)["forecast"]
    assert (forecast["missing"], forecast["calibrate_s"], forecast["features_mb"]) == (0, 0.0, 0.0)


def test_bounds_that_cannot_hold_are_said_with_the_reason(home: Path) -> None:
    done = nas("plan", "--space", TOY, "--where", "params<=1", "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["satisfiable"] is False
    assert json.loads(done.stdout)["costs"]["params"]["bound"] == 1
    assert "the least params of any candidate is" in done.stderr
    assert nas("plan", "--space", TOY, "--where", "flops<=1").returncode == 2


def test_a_plan_for_people_measures_latency_when_asked(home: Path) -> None:
    done = nas("plan", "--space", TOY, "--measure-latency", "--where", "latency_ms<=100%", "--batch", "4", "--quiet", "--threads", "1")
    assert done.returncode == 0, done.stderr
    assert "batch 4" in done.stdout
    assert "20 random candidates" in done.stdout
    assert "latency_ms" in done.stdout
    again = json.loads(nas("plan", "--space", TOY, "--minimize", "latency_ms", "--json").stdout)
    assert again["objective"] == "latency_ms"


def test_a_plan_names_what_its_costs_leave_out(tmp_path: Path, home: Path) -> None:
    file = tmp_path / "outer.py"
    file.write_text(
        """
import torch
from nas.batches import collect, split
from nas.blocks.reductions.depth import Bypass
from nas.spaces.model import model_space

class Outer(torch.nn.Module):
    def forward(self, x):
        return x + 0.1 * torch.linalg.solve(torch.eye(4) * 2, x.T).T

def make_space():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), Outer()).eval()
    return model_space("outer", model, ["1"], split(collect([torch.randn(64, 4)])), [Bypass()])
"""
    )
    done = nas("plan", "--space", f"{file}:make_space", "--json")
    assert done.returncode == 0, done.stderr
    assert any("solve" in note for note in json.loads(done.stdout)["notes"])
    assert "MACs leave out" in nas("plan", "--space", f"{file}:make_space", "--where", "macs<=100%").stderr


def test_a_space_without_a_network_is_planned_too() -> None:
    done = nas("plan", "--space", "synthetic:3", "--json")
    assert json.loads(done.stdout)["forecast"] is None
    assert "no latency to measure" in nas("plan", "--space", "synthetic:3", "--measure-latency").stderr
