"""The space from a diffusers folder and a folder of pictures to a winner that one line loads."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from PIL import Image

import nas
from nas.blocks.calibration import CalibrationSettings
from nas.errors import DamagedFile, InputError
from nas.progress import Quiet
from nas.spaces.tocsr.assets import EmbeddedAssets, newest_version, shipped_version
from nas.spaces.tocsr.compact import CompactUNet
from nas.spaces.tocsr.data import Latents, noised, split_by_picture
from nas.spaces.tocsr.space import tocsr_unet
from nas.spaces.tocsr.teacher import load_teacher


@pytest.fixture
def folder(shallow: UNet2DConditionModel, tmp_path: Path) -> Path:
    """A teacher as diffusers saves one: unet, vae (f = 2), scheduler; no text encoder."""
    path, unet = tmp_path / "teacher", shallow
    unet.save_pretrained(path / "unet")
    torch.manual_seed(0)
    channels = unet.config.in_channels
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8), latent_channels=channels, norm_num_groups=4,
    )  # fmt: skip
    vae.save_pretrained(path / "vae")
    DDPMScheduler(prediction_type="v_prediction").save_pretrained(path / "scheduler")
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    path = tmp_path / "pictures"
    path.mkdir()
    random = np.random.default_rng(0)
    for number in range(8):
        Image.fromarray(random.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(path / f"{number}.png")
    Image.fromarray(random.integers(0, 255, (40, 50), dtype=np.uint8)).save(path / "gray.png")
    (path / "broken.jpg").write_bytes(b"\xff\xd8 not a picture")
    return path


def test_a_search_on_a_teacher_folder_saves_a_winner_that_one_line_loads(folder: Path, pictures: Path, home: Path, tmp_path: Path) -> None:
    space = tocsr_unet(str(folder), data=str(pictures))
    stages = tuple(replace(stage, choices=stage.choices[:2]) for stage in space.stages)
    space = replace(space, home=home, stages=stages, calibration=CalibrationSettings(max_steps=10, check_every=10))
    result = nas.search(space, 1e9, workdir=tmp_path / "runs", trials=3, optimizer="random")
    winner = result.winners[0]
    assert winner.trial is not None
    model = CompactUNet.from_pretrained(result.paths[1e9]).eval()
    assert sum(p.numel() for p in model.parameters()) == winner.trial.costs["params"]
    samples = space.data.measure
    evaluator = space.prepare(Quiet()).evaluator
    with torch.no_grad():
        eps = [model(c.inputs["sample"], c.inputs["timestep"], c.inputs["text"]).sample for c in samples.chunks(32)]
    assert torch.equal(torch.cat(eps), evaluator.outputs(winner.trial.candidate))  # type: ignore[attr-defined]
    architecture = json.loads((Path(result.paths[1e9]) / "architecture.json").read_text())
    assert {name: stage["choice"] for name, stage in architecture["stages"].items() if name in space.space.decode((0,) * 9)} == result.to_json()["winners"][0][
        "candidate"
    ]
    assert "total" in (Path(result.paths[1e9]) / "architecture.txt").read_text()


def test_the_teacher_is_exported_and_used_as_a_teacher_again(folder: Path, pictures: Path, home: Path, tmp_path: Path) -> None:
    space = tocsr_unet(str(folder), data=str(pictures))
    only = replace(space.stages[0], choices=space.stages[0].choices[:1])
    task = replace(space, home=home, stages=(only,)).prepare(Quiet())
    assert task.export is not None
    (tmp_path / "exported").mkdir()
    task.export(task.space.teacher, tmp_path / "exported" / "unet")
    for part in ("vae", "scheduler"):
        shutil.copytree(folder / part, tmp_path / "exported" / part)
    again = load_teacher(str(tmp_path / "exported"), str(pictures))
    inputs = again.data.measure.rows(slice(0, 4)).inputs
    with torch.no_grad():
        assert torch.equal(again.unet.graph.run(inputs), space.graph.run(inputs))


def test_pictures_that_cannot_be_read_are_named_and_skipped(folder: Path, pictures: Path) -> None:
    notes: list[str] = []

    class Listener(Quiet):
        def note(self, text: str) -> None:
            notes.append(text)

    teacher = load_teacher(str(folder), str(pictures), progress=Listener())
    assert any("broken.jpg" in note for note in notes)
    groups = {int(g) for split in (teacher.data.fit, teacher.data.measure, teacher.data.verify) for g in split.groups}
    assert groups == set(range(9))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "scheduler" / "scheduler_config.json").unlink(), "scheduler/scheduler_config.json"),
        (lambda f: (f / "unet" / "config.json").write_text("{"), "unet/config.json"),
        (lambda f: (f / "unet" / "config.json").write_text("[]"), "unet/config.json"),
        (lambda f: (f / "unet" / "diffusion_pytorch_model.safetensors").unlink(), "unet cannot be loaded"),
        (lambda f: (f / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"torn"), "unet cannot be loaded"),
        (lambda f: edit(f, _class_name="FluxTransformer2DModel"), "must be a UNet2DConditionModel, got Flux"),
        (lambda f: edit(f, addition_embed_type="text_time"), "SDXL-like"),
        (lambda f: edit(f, in_channels=9), "an inpainting or super-resolution network cannot be a teacher"),
        (lambda f: shutil.rmtree(f / "vae"), "has no vae/config.json"),
    ],
)
def test_a_teacher_folder_that_does_not_serve_is_one_clear_error(folder: Path, pictures: Path, damage: object, message: str) -> None:
    damage(folder)  # type: ignore[operator]
    with pytest.raises((InputError, DamagedFile), match=message):
        load_teacher(str(folder), str(pictures))


def edit(folder: Path, **changes: object) -> None:
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_teacher_without_pictures_says_what_to_give(folder: Path) -> None:
    with pytest.raises(InputError, match="give a folder of pictures with --data"):
        load_teacher(str(folder))


def test_timesteps_are_uniform_and_the_noised_latent_is_the_forward_process() -> None:
    abar = torch.linspace(0.99, 0.01, 1000)
    clean = Latents(torch.randn(10, 2, 3, 3), torch.randn(10, 1, 4), torch.arange(10))
    samples = noised(clean, abar, 1000, seed=3)
    assert samples.inputs["timestep"].sort().values.tolist() == list(range(1000))
    assert torch.bincount(samples.groups).tolist() == [100] * 10
    assert samples.target is not None
    a = abar[samples.inputs["timestep"]].view(-1, 1, 1, 1)
    torch.testing.assert_close(samples.inputs["sample"], a.sqrt() * clean.latents[samples.groups] + (1 - a).sqrt() * samples.target)
    assert noised(clean, abar, 1000, seed=3).fingerprint == samples.fingerprint


def test_splits_are_disjoint_by_picture() -> None:
    clean = Latents(torch.randn(40, 2, 3, 3), torch.zeros(40, 1, 4), torch.arange(40) // 2)
    splits = split_by_picture(clean, torch.linspace(0.99, 0.01, 1000))
    assert [len(torch.unique(s.groups)) for s in (splits.fit, splits.measure, splits.verify)] == [5, 7, 8]
    assert all(len(s) == 128 for s in (splits.fit, splits.measure, splits.verify))
    with pytest.raises(InputError, match="cannot make three disjoint sets"):
        split_by_picture(clean.rows(torch.arange(4)), torch.linspace(0.99, 0.01, 1000))


@pytest.mark.parametrize("name", ["embedded", "embedded-tight"])
def test_an_embedded_teacher_is_whole_its_sets_disjoint_and_of_unit_variance(name: str) -> None:
    assets = EmbeddedAssets(str(shipped_version(name)))
    latents = assets.latents()
    assert min(len(torch.unique(latents[name].groups)) for name in ("measure", "verify")) >= 64
    everything = torch.cat([part.latents for part in latents.values()])
    assert abs(float(everything.var()) - 1) < 0.1
    teacher = load_teacher(name)
    assert min(len(teacher.data.measure), len(teacher.data.verify)) >= 128


def test_a_flipped_byte_in_the_embedded_teacher_is_detected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nas.spaces.tocsr import assets

    version = newest_version()
    shutil.copytree(EmbeddedAssets(version).root, tmp_path / version)
    monkeypatch.setattr(assets, "_FOLDER", tmp_path)
    path = tmp_path / version / "unet" / "diffusion_pytorch_model.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedFile, match="missing or damaged; install stage-nas again"):
        EmbeddedAssets(version)


def test_embedded_teachers_and_their_versions_can_be_named() -> None:
    assert load_teacher("embedded-v2").name == load_teacher("embedded").name == "embedded-v2"
    tight = load_teacher("embedded-tight")
    assert tight.name == "embedded-tight-v1"
    assert tight.notes == ("teacher: embedded-tight-v1, 9 of 9 stages active (docs/embedded_teacher.md)",)
    with pytest.raises(InputError, match="no teacher folder 'embedded-v0'; did you mean 'embedded'"):
        load_teacher("embedded-v0")


def test_calibration_can_be_cut_short_which_makes_other_blocks() -> None:
    short, usual = tocsr_unet(calibration_steps=3), tocsr_unet()
    assert (short.calibration.max_steps, short.calibration.check_every) == (3, 3)
    assert short.fingerprint()["library"] != usual.fingerprint()["library"]
    with pytest.raises(InputError, match="calibration_steps must be at least 1, got 0"):
        tocsr_unet(calibration_steps=0)
