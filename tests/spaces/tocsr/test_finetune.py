"""Fine-tuning a winner: the loss, the figures, going on, and what is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import nas
from nas.blocks.calibration import CalibrationSettings
from nas.errors import DamagedFile, InputError
from nas.progress import Quiet
from nas.spaces.tocsr import CompactUNet
from nas.spaces.tocsr.finetune import Denoising, Figures, finetune, predictions
from nas.spaces.tocsr.space import tocsr_unet
from nas.spaces.tocsr.teacher import Teacher, load_teacher
from nas.spaces.tocsr.trainer import TrainingSettings
from tests.core.test_cli import nas as command


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    """The embedded teacher on few samples."""
    whole = load_teacher()
    return replace(whole, data=replace(whole.data, measure=whole.data.measure.rows(slice(0, 8)), verify=whole.data.verify.rows(slice(0, 8))))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the embedded teacher, its winner calibrated for a moment only."""
    folder = tmp_path_factory.mktemp("finetune")
    space = tocsr_unet()
    stages = tuple(replace(stage, choices=stage.choices[:2]) for stage in space.stages[3:6])
    space = replace(space, home=folder / "home", stages=stages, calibration=CalibrationSettings(max_steps=5, check_every=5))
    nas.search(space, 1e9, workdir=folder, name="run", trials=2, optimizer="random")
    return folder / "run"


SETTINGS = TrainingSettings(steps=8, batch=16, rate=5e-5, average=0.5)


class Sees(nn.Module):
    """Answers with a constant and keeps what it was asked."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value, self.asked = value, []  # type: ignore[var-annotated]

    def forward(self, sample: Tensor, timestep: Tensor, text: Tensor, return_dict: bool = True) -> tuple[Tensor]:
        self.asked.append((sample, timestep))
        return (torch.full_like(sample, self.value),)


def test_the_loss_is_the_denoising_objective_with_its_share_of_distillation() -> None:
    abar = torch.linspace(0.99, 0.01, 50)
    clean, text = torch.randn(400, 2, 4, 4), torch.zeros(400, 1, 3)
    network = Sees(0.0)
    plain = Denoising(abar)(network, (clean, text), torch.Generator().manual_seed(0))
    assert float(plain) == pytest.approx(1.0, abs=0.03)  # the noise has unit variance
    sample, timestep = network.asked[0]
    a = abar[timestep].view(-1, 1, 1, 1)
    noise = (sample - a.sqrt() * clean) / (1 - a).sqrt()
    assert float(noise.square().mean()) == pytest.approx(float(plain), rel=1e-4)
    assert set(timestep.tolist()) == set(range(50))
    mixed = Denoising(abar, Sees(3.0), 0.25)(network, (clean, text), torch.Generator().manual_seed(0))
    assert float(mixed) == pytest.approx(0.75 * float(plain) + 0.25 * 9)
    with pytest.raises(InputError, match="between 0 and 1"):
        Denoising(abar, weight=1.5)


def test_the_teacher_has_no_divergence_from_itself(teacher: Teacher) -> None:
    figures = Figures(teacher)
    found = figures(teacher.unet)
    assert found["divergence"] == found["heldout_divergence"] == 0
    assert found["heldout_loss"] == figures.teacher_heldout_loss
    target = teacher.data.verify.target
    assert target is not None
    assert found["heldout_loss"] == pytest.approx(float((predictions(teacher.unet, teacher.data.verify) - target).square().mean()))


def test_a_fine_tuned_winner_is_a_model_folder_with_what_it_gained(run: Path, teacher: Teacher) -> None:
    before = {p.name: p.read_bytes() for p in (run / "winner").iterdir()}
    result = finetune(run / "winner", teacher, SETTINGS, 1.0, run, "cpu", Quiet())
    assert result["after"]["divergence"] < result["before"]["divergence"]
    network = CompactUNet.from_pretrained(result["path"]).eval()
    assert Figures(teacher)(network) == pytest.approx(result["after"])
    assert json.loads((Path(result["path"]) / "finetuning.json").read_text())["curve"] == result["curve"]
    assert {p.name: p.read_bytes() for p in (run / "winner").iterdir()} == before
    assert not list(run.glob(".*checkpoint"))
    assert finetune(run / "winner", teacher, SETTINGS, 1.0, run, "cpu", Quiet()) == result


def test_a_fine_tuning_that_was_killed_goes_on_to_the_same_model(run: Path, teacher: Teacher, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = replace(SETTINGS, steps=4, batch=4, seed=1, save_s=0)
    calls = 0
    whole = Denoising.__call__

    def dying(self: Denoising, network: nn.Module, batch: tuple[Tensor, Tensor], random: torch.Generator) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return whole(self, network, batch, random)

    monkeypatch.setattr(Denoising, "__call__", dying)
    with pytest.raises(KeyboardInterrupt):
        finetune(run / "winner", teacher, settings, 0.5, run, "cpu", Quiet())
    assert len(list(run.glob(".*checkpoint"))) == 1
    monkeypatch.undo()
    went_on = finetune(run / "winner", teacher, settings, 0.5, run, "cpu", Quiet())
    shutil.rmtree(went_on["path"])
    assert finetune(run / "winner", teacher, settings, 0.5, run, "cpu", Quiet())["curve"] == went_on["curve"]


def test_a_damaged_winner_and_another_runs_space_are_refused(run: Path, teacher: Teacher, tmp_path: Path) -> None:
    shutil.copytree(run / "winner", tmp_path / "winner")
    weights = tmp_path / "winner" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(DamagedFile, match="its hash differs"):
        finetune(tmp_path / "winner", teacher, SETTINGS, 0.0, tmp_path, "cpu", Quiet())
    nas.search("synthetic:3", 0.1, workdir=tmp_path, name="other", trials=2)
    done = command("tocsr", "finetune", str(tmp_path / "other"))
    assert (done.returncode, "for runs of tocsr_unet" in done.stderr) == (2, True)


def test_the_command_fine_tunes_and_reports(run: Path) -> None:
    done = command("tocsr", "finetune", str(run), "--steps", "1", "--batch", "4", "--json", "--quiet", "--threads", "1", "--log", "tensorboard")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert {"before", "after", "teacher_heldout_loss", "params", "curve", "settings", "path", "distillation", "winner"} == set(result)
    assert list((run / "logs").glob("events*"))
    assert "fine-tuned" in command("tocsr", "finetune", str(run), "--steps", "1", "--batch", "4", "--threads", "1").stdout
    assert "steps must be at least 1" in command("tocsr", "finetune", str(run), "--steps", "0").stderr
