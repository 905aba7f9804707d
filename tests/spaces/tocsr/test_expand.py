"""Algorithm 2 from folder to folder, in a minute model."""

import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from PIL import Image

from nas.errors import InputError, RunMismatch
from nas.progress import Quiet
from nas.spaces.tocsr.compact import CompactUNet
from nas.spaces.tocsr.expand import ExpansionOptions, Joint, expand, load_vae
from nas.spaces.tocsr.folders import PictureFolder
from nas.spaces.tocsr.trainer import TrainingSettings
from tests.core.test_cli import nas as command
from tests.spaces.tocsr.test_expansion import autoencoder

SETTINGS = TrainingSettings(steps=2, batch=2, rate=1e-3, average=0.5, save_s=0)
OPTIONS = ExpansionOptions(SETTINGS, SETTINGS, heldout=2)


@pytest.fixture
def folders(shallow: UNet2DConditionModel, tmp_path: Path) -> dict[str, Path]:
    """A teacher of 4 latent channels, a teacher autoencoder of 16, six pictures."""
    paths = {name: tmp_path / name for name in ("teacher", "guide", "pictures")}
    shallow.save_pretrained(paths["teacher"] / "unet")
    autoencoder(4).save_pretrained(paths["teacher"] / "vae")
    DDPMScheduler(prediction_type="v_prediction").save_pretrained(paths["teacher"] / "scheduler")
    autoencoder(16).save_pretrained(paths["guide"] / "vae")
    paths["pictures"].mkdir()
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 255, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(paths["pictures"] / f"{number}.png")
    return paths


def run(folders: dict[str, Path], options: ExpansionOptions = OPTIONS, to: str = "wide") -> dict[str, object]:
    pictures = PictureFolder.of([folders["pictures"]], 16)
    return expand(folders["teacher"], str(folders["guide"]), pictures, options, folders["teacher"].parent / to, device="cpu", progress=Quiet())


def test_an_expanded_teacher_is_a_diffusers_folder_that_serves_as_a_teacher(folders: dict[str, Path]) -> None:
    result = run(folders)
    to = Path(str(result["path"]))
    unet, vae = UNet2DConditionModel.from_pretrained(to / "unet"), AutoencoderKL.from_pretrained(to / "vae")
    assert (unet.config.in_channels, unet.config.out_channels, vae.config.latent_channels) == (16, 16, 16)
    assert CompactUNet.from_teacher_folder(to).config.scheduler["prediction_type"] == "v_prediction"
    assert [row["step"] for row in result["autoencoder"]] == [row["step"] for row in result["joint"]] == [0, 1, 2]  # type: ignore[attr-defined]
    assert {"step", "loss", "heldout_loss", "psnr"} == set(result["joint"][0])  # type: ignore[index]
    assert run(folders) == json.loads((to / "expansion.json").read_text())
    assert not list(to.parent.glob(".wide*"))
    with pytest.raises(RunMismatch, match="holds an expansion with other options; give another --to"):
        run(folders, replace(OPTIONS, variant="v1"))
    with pytest.raises(RunMismatch, match=r"holds an expansion with vae_teacher '.*'; give another --to"):
        run(folders | {"guide": folders["teacher"]})
    next(folders["pictures"].iterdir()).rename(folders["pictures"] / "another.png")
    with pytest.raises(RunMismatch, match="holds an expansion with pictures '"):
        run(folders)


def test_an_expansion_that_was_killed_goes_on_to_the_same_weights(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(folders, to="whole")
    forward, calls = Joint.forward, 0

    def dying(self: Joint, *batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal calls
        calls += self.training
        if calls == 2:
            raise KeyboardInterrupt
        return forward(self, *batch)

    monkeypatch.setattr(Joint, "forward", dying)
    with pytest.raises(KeyboardInterrupt):
        run(folders, to="part")
    monkeypatch.undo()
    assert run(folders, to="part")["joint"] == whole["joint"]
    states = [UNet2DConditionModel.from_pretrained(folders["teacher"].parent / name / "unet").state_dict() for name in ("whole", "part")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_variant_v1_is_saved_as_a_network_of_our_own(folders: dict[str, Path]) -> None:
    result = run(folders, replace(OPTIONS, variant="v1"))
    unet = CompactUNet.from_teacher_folder(Path(str(result["path"])))
    assert len(unet.conv_in) == 2
    with torch.no_grad():
        assert bool(torch.isfinite(unet(torch.randn(1, 16, 8, 8), 5, torch.randn(1, 3, 24)).sample).all())


def test_what_cannot_be_expanded_is_said_before_the_work_starts(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="must have 8 latent channels, got 16"):
        run(folders, replace(OPTIONS, channels=8))
    (folders["teacher"].parent / "taken").mkdir()
    with pytest.raises(InputError, match="exists already"):
        run(folders, to="taken")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 1))  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="on disk for checkpoints and models"):
        run(folders)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1))
    with pytest.raises(InputError, match="of memory on 'cpu' beside the activations"):
        run(folders)
    assert not (folders["teacher"].parent / ".wide.training").exists()


def test_an_autoencoder_that_is_not_there_says_which_files_go_where(folders: dict[str, Path]) -> None:
    with pytest.raises(InputError, match=r"vae/diffusion_pytorch_model.safetensors"):
        load_vae(str(folders["pictures"]))
    (folders["guide"] / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"torn")
    with pytest.raises(InputError, match="give their folder with --vae-teacher"):
        load_vae(str(folders["guide"]))


def test_the_command(folders: dict[str, Path]) -> None:
    to = folders["teacher"].parent / "wide"
    words = [
        "tocsr",
        "expand",
        "--teacher",
        str(folders["teacher"]),
        "--vae-teacher",
        str(folders["guide"]),
        "--data",
        str(folders["pictures"]),
        "--to",
        str(to),
    ]
    done = command(*words, "--size", "16", "--steps", "1", "--joint-steps", "1", "--batch", "1", "--accumulate", "1", "--held-out", "2", "--threads", "1")
    assert done.returncode == 0, done.stderr
    assert "held-out PSNR" in done.stdout
    assert command(*words[:-1], str(to / "x"), "--variant", "v9").returncode == 2


@pytest.mark.slow
def test_accelerate_launches_an_expansion_that_reports_once(folders: dict[str, Path]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = ["--cpu", "--num_processes=2", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no", f"--main_process_port={port}", "-m", "nas"]
    to = folders["teacher"].parent / "launched"
    given = {"teacher": folders["teacher"], "vae-teacher": folders["guide"], "data": folders["pictures"], "to": to}
    small = {"size": 16, "held-out": 2, "steps": 2, "joint-steps": 2, "batch": 2, "accumulate": 2, "threads": 1}
    words = [f"--{name}={value}" for name, value in {**given, **small}.items()]
    command = [sys.executable, "-m", "accelerate.commands.launch", *launcher, "tocsr", "expand", *words, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"})
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert [row["step"] for row in result["joint"]] == [0, 1, 2]
    assert CompactUNet.from_teacher_folder(to).config.in_channels == 16
    assert not list(to.parent.glob(".launched*"))
