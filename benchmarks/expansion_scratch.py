"""Latent expansion in miniature: do 16 channels reconstruct better than 4, and which of the U-Net variants v1, v2, v3 has the lowest loss?

All networks are trained from scratch on crops of photographs, split by photograph, every figure is taken on held-out ones; once for each seed:

    guide      an autoencoder of 16 latent channels: the counterpart of FLUX's
    base       one of 4: the counterpart of SD1.5's
    4          the base autoencoder goes on with reconstruction, for `--further-steps`
    16         the base autoencoder expanded, trained by Eq. (4) for as many
    unet       a U-Net of the embedded teacher's sizes on the base's latents: the counterpart of SD1.5's
    v1, v2, v3 that U-Net expanded, trained with the autoencoder of 16 channels by Eq. (5), all on the same batches and noise

    python benchmarks/expansion_scratch.py --photographs FOLDER [--factor 8] [--device cuda] [--seeds 3] [--processes 6] [--autoencoders] [--out FOLDER]

Each training is a process; the same command goes on where it was stopped. `--autoencoders` leaves U-Nets out. `--factor` is what the autoencoders
compress by, 8 as SD1.5's and FLUX's do, or 4.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dated import FOLDER, write_result
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from PIL import Image
from super_resolution import textured, whole
from torch import Generator, Tensor, nn

from nas.cli.console import Terminal
from nas.files import write_whole
from nas.spaces.tocsr.assets import EmbeddedAssets, newest_version
from nas.spaces.tocsr.compact import CompactUNet
from nas.spaces.tocsr.data import Latents
from nas.spaces.tocsr.expand import GuidedLosses, Joint, expanded_unet
from nas.spaces.tocsr.expansion import VARIANTS, Distilled, expand_autoencoder, taken_over
from nas.spaces.tocsr.finetune import Denoising, draw_latents
from nas.spaces.tocsr.folders import PictureFolder
from nas.spaces.tocsr.sr.metrics import psnr, ssim
from nas.spaces.tocsr.sr.recipe import Recipe
from nas.spaces.tocsr.teacher import alphas_cumprod
from nas.spaces.tocsr.trainer import Evaluate, Loss, Trainer, TrainingSettings

TILE, CROP = 48, 32
"""Sides of the training pictures that are cut out of the photographs, and of the crops of them."""

SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}


def autoencoder(channels: int, factor: int) -> AutoencoderKL:
    """SD1.5's structure, narrow, one layer a block."""
    widths = {4: (16, 32, 48), 8: (16, 32, 48, 48)}[factor]
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(widths), up_block_types=("UpDecoderBlock2D",) * len(widths), block_out_channels=widths,
        layers_per_block=1, latent_channels=channels, norm_num_groups=8, mid_block_add_attention=False,
    )  # fmt: skip


class Reconstruction(nn.Module):
    """Squared error of an autoencoder's reconstruction."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, images: Tensor) -> Tensor:
        return (self.vae.decode(self.vae.encode(images).latent_dist.mode()).sample - images).float().square().mean()


def reconstructing(network: nn.Module, images: Tensor, random: Generator) -> Tensor:
    """The loss of a batch."""
    del random
    found: Tensor = network(images)
    return found


@torch.no_grad()
def figures(vae: AutoencoderKL, windows: Tensor) -> dict[str, float]:
    """Mean PSNR in dB and SSIM of reconstructions of the windows."""
    found = torch.cat([vae.decode(vae.encode(part.to(vae.device)).latent_dist.mode()).sample.cpu() for part in windows.split(4)])
    pairs = [(_bytes(f), _bytes(w)) for f, w in zip(found, windows, strict=True)]
    return {"psnr": float(np.mean([psnr(*pair) for pair in pairs])), "ssim": float(np.mean([ssim(*pair) for pair in pairs]))}


def _bytes(image: Tensor) -> Any:
    return ((image.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()


Curve = list[dict[str, float | None]]


class Job:
    """One seed's trainings, some of which leave a folder under `work`; each returns its curve."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self.asked, self.work, self.seed = asked, asked.work, asked.seed
        self.pictures = PictureFolder.of([self.work / "tiles" / "train"], CROP)
        self.windows = torch.stack([_values(file) for file in sorted((self.work / "tiles" / "windows").iterdir())])
        shared: dict[str, Any] = {"batch": 16, "rate": 1e-3, "warmup": 50, "average": 0.995, "seed": asked.seed, "precision": asked.precision}
        lengths = (asked.steps, asked.guide_steps, asked.further_steps, asked.joint_steps)
        self.settings, self.long, self.further, self.joint = (TrainingSettings(steps, **shared) for steps in lengths)

    def _train(self, name: str, module: nn.Module, loss: Loss, judge: Evaluate, settings: TrainingSettings) -> Curve:
        """Trains on crops; the curve."""
        trainer = Trainer(module, self.pictures.crops, loss, settings, device=self.asked.device)
        return trainer.run(self.work / f"{name}.checkpoint", judge, every=max(1, settings.steps // 4), progress=Terminal())

    def _reconstructing(self, name: str, vae: AutoencoderKL, settings: TrainingSettings) -> Curve:
        """Trains the autoencoder by reconstruction and scales its latents to unit variance; the curve."""
        curve = self._train(name, Reconstruction(vae), reconstructing, lambda module: figures(module.vae, self.windows), settings)
        with torch.no_grad():
            crops = self.pictures.crops(torch.Generator().manual_seed(0), 256).to(vae.device)
            vae.register_to_config(scaling_factor=1 / float(vae.encode(crops).latent_dist.mode().std()))
        return curve

    def guide(self) -> Curve:
        """Sixteen channels from scratch."""
        torch.manual_seed(self.seed)
        vae, name = autoencoder(16, self.asked.factor), f"guide-{self.seed}"
        curve = self._reconstructing(name, vae, self.long)
        vae.save_pretrained(self.work / name)
        return curve

    def base(self) -> Curve:
        """Four channels from scratch."""
        torch.manual_seed(self.seed)
        vae, name = autoencoder(4, self.asked.factor), f"base-{self.seed}"
        curve = self._reconstructing(name, vae, self.settings)
        vae.save_pretrained(self.work / name / "vae")
        return curve

    def unet(self) -> Curve:
        """A U-Net on the base's latents."""
        torch.manual_seed(self.seed)
        folder = self.work / f"base-{self.seed}"
        vae = AutoencoderKL.from_pretrained(folder / "vae").to(self.asked.device)
        config = {**UNet2DConditionModel.load_config(EmbeddedAssets(newest_version()).root / "unet"), "in_channels": 4, "out_channels": 4}
        stock, scheduler = UNet2DConditionModel.from_config(config), DDPMScheduler(num_train_timesteps=1000, **SCHEDULE)
        unet = CompactUNet.of(stock, scheduler.config)
        with torch.no_grad():
            random = torch.Generator().manual_seed(1)
            crops = [self.pictures.crops(random, 64) for _ in range(len(self.pictures.files) // 64)]
            modes = torch.cat([vae.encode(part.to(vae.device)).latent_dist.mode().cpu() for part in crops]) * vae.config.scaling_factor
        clean = Latents(modes, self._text(unet).expand(len(modes), -1, -1), torch.arange(len(modes)))
        trainer = Trainer(unet, draw_latents(clean), Denoising(alphas_cumprod(unet)), replace(self.joint, batch=64), device=self.asked.device)
        curve = trainer.run(self.work / f"unet-{self.seed}.checkpoint", progress=Terminal())
        stock.save_pretrained(folder / "unet")
        scheduler.save_pretrained(folder / "scheduler")
        return curve

    @staticmethod
    def _text(unet: CompactUNet) -> Tensor:
        return torch.zeros(1, 1, int(unet.config.cross_attention_dim))

    def narrow(self) -> Curve:
        """The base autoencoder, going on."""
        return self._reconstructing(f"4-{self.seed}", AutoencoderKL.from_pretrained(self.work / f"base-{self.seed}" / "vae"), self.further)

    def _guided(self, vae: AutoencoderKL, text: Tensor) -> tuple[AutoencoderKL, GuidedLosses]:
        guide = AutoencoderKL.from_pretrained(self.work / f"guide-{self.seed}")
        vae.register_to_config(**taken_over(vae, guide))
        return vae, GuidedLosses(guide.requires_grad_(False).to(self.asked.device), text)

    def wide(self) -> Curve:
        """The base autoencoder expanded, by Eq. (4)."""
        base = AutoencoderKL.from_pretrained(self.work / f"base-{self.seed}" / "vae")
        vae, losses = self._guided(expand_autoencoder(base, 16), torch.zeros(1, 1, 1))
        curve = self._train(f"16-{self.seed}", Distilled(vae), losses.matching, lambda module: figures(module.vae, self.windows), self.further)
        vae.save_pretrained(self.work / f"16-{self.seed}")
        return curve

    def variant(self, name: str) -> Curve:
        """A variant's U-Net and the expanded autoencoder, by Eq. (5)."""
        unet = expanded_unet(CompactUNet.from_teacher_folder(self.work / f"base-{self.seed}"), 16, name)  # type: ignore[arg-type]
        vae, losses = self._guided(AutoencoderKL.from_pretrained(self.work / f"16-{self.seed}"), self._text(unet))

        def judge(module: Joint) -> dict[str, float]:
            random = torch.Generator().manual_seed(5)
            parts = [losses.both(module, part.to(self.asked.device), random)[0] for part in self.windows.split(2)]
            return {"heldout_loss": float(torch.stack(parts).mean())}

        return self._train(f"{name}-{self.seed}", Joint(Distilled(vae), unet), losses.denoising, judge, self.joint)  # type: ignore[arg-type]


JOBS: dict[str, Callable[[Job], Curve]] = {
    "guide": Job.guide,
    "base": Job.base,
    "4": Job.narrow,
    "16": Job.wide,
    "unet": Job.unet,
    **{variant: (lambda job, variant=variant: job.variant(variant)) for variant in VARIANTS},
}


def _values(file: Path) -> Tensor:
    return torch.from_numpy(np.asarray(Image.open(file), dtype=np.float32).transpose(2, 0, 1).copy()) / 127.5 - 1


def write_tiles(asked: argparse.Namespace) -> None:
    """Training tiles, at scales from 0.4 to 1, and the textured windows of held-out photographs, as files without compression, which are read fast."""
    folder = asked.work / "tiles"
    if (folder / "complete").exists():
        return
    training, held = replace(Recipe.read(asked.recipe).photographs, folder=str(asked.photographs)).load(Terminal())
    for part in ("train", "windows"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    rng, names = np.random.default_rng(0), sorted(training)
    for number in range(asked.tiles):
        picture = Image.fromarray(training[names[number % len(names)]])
        side = min(round(TILE / rng.uniform(0.4, 1.0)), *picture.size)
        x, y = (int(rng.integers(0, length - side + 1)) for length in picture.size)
        picture.crop((x, y, x + side, y + side)).resize((TILE, TILE), Image.Resampling.LANCZOS).save(folder / "train" / f"{number:05}.bmp")
    for name, picture in held.items():
        Image.fromarray(textured(whole(name, picture)).high).save(folder / "windows" / f"{name}.bmp")
    (folder / "complete").touch()


def trained_apart(asked: argparse.Namespace, job: str, seed: int) -> dict[str, Any]:
    """What a training left, done in a process of its own."""
    kept = asked.work / f"{job}-{seed}.json"
    if not kept.is_file():
        names = ("recipe", "photographs", "factor", "steps", "guide_steps", "further_steps", "joint_steps", "device", "precision", "work", "threads")
        command = [sys.executable, __file__, *(f"--{key.replace('_', '-')}={getattr(asked, key)}" for key in names), "--job", job, "--seed", str(seed)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{job}, seed {seed}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(kept.read_text())
    print(job, seed, "done", file=sys.stderr, flush=True)
    return found


def summed(found: dict[tuple[str, int], dict[str, Any]], seeds: int) -> dict[str, Any]:
    """What the seeds say: reconstruction of each autoencoder, denoising loss of each variant."""
    last = {key: rows["curve"][-1] for key, rows in found.items() if rows["curve"]}
    autoencoders = {job: {key: [last[job, seed][key] for seed in range(seeds)] for key in ("psnr", "ssim")} for job in ("guide", "base", "4", "16")}
    losses = {variant: [last[variant, seed]["heldout_loss"] for seed in range(seeds)] for variant in VARIANTS if (variant, 0) in last}
    lowest = [min(losses, key=lambda variant: losses[variant][seed]) for seed in range(seeds)] if losses else None
    return {"autoencoders": autoencoders, "heldout_loss": losses, "lowest": lowest}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=Path("recipes/embedded.toml"), help="whose held-out photographs are held out here")
    parser.add_argument("--photographs", type=Path, required=True)
    parser.add_argument("--factor", type=int, default=8, choices=(4, 8))
    parser.add_argument("--steps", type=int, default=1200, help="of the base autoencoder")
    parser.add_argument("--guide-steps", type=int, default=2400)
    parser.add_argument("--further-steps", type=int, default=2400, help="of the two that go on from the base")
    parser.add_argument("--joint-steps", type=int, default=400, help="of autoencoder and U-Net together, and of the base U-Net")
    parser.add_argument("--tiles", type=int, default=4000, help="training pictures")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("build/expansion"))
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--autoencoders", action="store_true")
    parser.add_argument("--job", choices=JOBS, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    if asked.job:
        curve = JOBS[asked.job](Job(asked))
        write_whole(asked.work / f"{asked.job}-{asked.seed}.json", json.dumps({"curve": curve}).encode())  # last: it says that the job is done
        return
    write_tiles(asked)
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for jobs in (("guide", "base"), ("4", "16"), *(() if asked.autoencoders else (("unet",), VARIANTS))):
        keys = [(job, seed) for seed in range(asked.seeds) for job in jobs]
        with ThreadPoolExecutor(asked.processes) as pool:
            found |= dict(zip(keys, pool.map(lambda key: trained_apart(asked, *key), keys), strict=True))
    one = replace(Job(asked).settings, seed=0)
    curves = [{"job": job, "seed": seed, **rows} for (job, seed), rows in found.items()]
    about = {"factor": asked.factor, "settings": asdict(one), "guide_steps": asked.guide_steps, "further_steps": asked.further_steps}
    if not asked.autoencoders:
        about["joint_steps"] = asked.joint_steps
    write_result(f"expansion_scratch_f{asked.factor}", {**about, **summed(found, asked.seeds), "curves": curves}, asked.out)


if __name__ == "__main__":
    main()
