"""Latent expansion in miniature: do 16 channels reconstruct better than 4, and which of the U-Net variants v1, v2, v3 has the lowest loss?

Pictures are the shipped posters as the embedded autoencoder decodes them (384 `fit` to train on, 128 `verify` to judge by), the teacher autoencoder is
the embedded one (16 channels). An autoencoder with the first 4 of its channels is trained for a while: the counterpart of SD1.5's. From there two go on
with the same budget: one with 4 channels, by reconstruction, and one expanded to 16, by Eq. (4). Likewise the embedded U-Net is cut down to
the first 4 latent channels and trained for a while; then v1, v2 and v3 are expanded to 16 channels from it and trained by Eq. (16), same data and noise.

    python benchmarks/expansion.py [--steps 300] [--unet-steps 250]
"""

import argparse
import copy
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dated import write_result
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Generator, Tensor, nn

from nas.spaces.tocsr.assets import EmbeddedAssets, newest_version
from nas.spaces.tocsr.compact import CompactUNet
from nas.spaces.tocsr.data import Latents, noised
from nas.spaces.tocsr.expansion import VARIANTS, Distilled, expand_autoencoder, expand_unet, teacher_latents
from nas.spaces.tocsr.finetune import Denoising, draw_latents, predictions
from nas.spaces.tocsr.sr.metrics import psnr, ssim
from nas.spaces.tocsr.teacher import alphas_cumprod
from nas.spaces.tocsr.trainer import Trainer, TrainingSettings

OLD = 4


def with_channels(state: dict[str, Tensor], model: nn.Module, rows: dict[str, list[int]], columns: dict[str, list[int]]) -> None:
    """Loads the chosen rows and columns of convolutions, all else whole."""
    chosen = dict(state)
    for name, kept in rows.items():
        chosen |= {f"{name}.{part}": state[f"{name}.{part}"][kept] for part in ("weight", "bias")}
    for name, kept in columns.items():
        chosen[f"{name}.weight"] = state[f"{name}.weight"][:, kept]
    model.load_state_dict(chosen)


def figures(vae: AutoencoderKL, images: Tensor) -> dict[str, float]:
    """Mean PSNR in dB and SSIM of reconstructions."""
    with torch.no_grad():
        found = torch.cat([vae.decode(vae.encode(part).latent_dist.mode()).sample for part in images.split(32)])
    pairs = [(_bytes(f), _bytes(w)) for f, w in zip(found, images, strict=True)]
    return {"psnr": float(np.mean([psnr(*pair) for pair in pairs])), "ssim": float(np.mean([ssim(*pair) for pair in pairs]))}


def _bytes(image: Tensor) -> Any:
    return ((image.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()


class Reconstruction(nn.Module):
    """Squared error of an autoencoder's reconstruction."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, images: Tensor, wanted: Tensor) -> tuple[Tensor]:
        del wanted
        return ((self.vae.decode(self.vae.encode(images).latent_dist.mode()).sample - images).square().mean(),)


def train_autoencoder(module: nn.Module, pictures: tuple[Tensor, Tensor], test: Tensor, settings: TrainingSettings, checkpoint: Path) -> list[dict[str, Any]]:
    """The curve of PSNR and SSIM."""
    images, wanted = pictures

    def draw(random: Generator, n: int) -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(images), (n,), generator=random)
        return images[rows], wanted[rows]

    def loss(network: nn.Module, batch: tuple[Tensor, Tensor], random: Generator) -> Tensor:
        del random
        found: Tensor = network(*batch)[0]
        return found

    trainer = Trainer(module, draw, loss, settings)
    return trainer.run(checkpoint, lambda m: figures(m.vae, test), every=max(1, settings.steps // 5))


def autoencoders(teacher: AutoencoderKL, latents: dict[str, Latents], settings: TrainingSettings, weight: float, folder: Path) -> dict[str, Any]:
    """Curves of the 4-channel autoencoder, and of the two that go on from it."""
    with torch.no_grad():
        pictures = {name: torch.cat([teacher.decode(part).sample for part in latents[name].latents.split(32)]).clamp(-1, 1) for name in ("fit", "verify")}
    fit = pictures["fit"], teacher_latents(teacher, pictures["fit"])
    base = AutoencoderKL.from_config({**teacher.config, "latent_channels": OLD})
    kept = list(range(OLD))
    with_channels(teacher.state_dict(), base, {"encoder.conv_out": kept + [16 + k for k in kept]}, {"decoder.conv_in": kept})
    curves = {"4 channels, before": train_autoencoder(Reconstruction(base), fit, pictures["verify"], settings, folder / "before")}
    wide = expand_autoencoder(base)
    curves["4 channels, going on"] = train_autoencoder(Reconstruction(base), fit, pictures["verify"], settings, folder / "narrow")
    curves["16 channels, Eq. (4)"] = train_autoencoder(Distilled(wide, weight), fit, pictures["verify"], settings, folder / "wide")
    return {"curves": curves, "teacher": figures(teacher, pictures["verify"])}


def first_channels(latents: Latents) -> Latents:
    return Latents(latents.latents[:, :OLD], latents.text, latents.groups)


def unets(assets: EmbeddedAssets, latents: dict[str, Latents], settings: TrainingSettings, folder: Path) -> dict[str, Any]:
    """Held-out denoising loss of the 4-channel base, and of each variant while it is trained on 16 channels."""
    stock = UNet2DConditionModel.from_pretrained(assets.root / "unet")
    whole = CompactUNet.from_teacher_folder(assets.root)
    scheduler, abar = dict(whole.config.scheduler), alphas_cumprod(whole)
    base = UNet2DConditionModel.from_config({**stock.config, "in_channels": OLD, "out_channels": OLD})
    with_channels(stock.state_dict(), base, {"conv_out": list(range(OLD))}, {"conv_in": list(range(OLD))})

    def train(network: CompactUNet, name: str, data: dict[str, Latents]) -> list[dict[str, Any]]:
        judged = noised(data["verify"], abar, 256, seed=5)

        def heldout(module: nn.Module) -> dict[str, float]:
            assert judged.target is not None
            return {"heldout_loss": float((predictions(module, judged) - judged.target).square().mean())}

        return Trainer(network, draw_latents(data["fit"]), Denoising(abar), settings).run(folder / name, heldout, every=max(1, settings.steps // 5))

    curves = {"base": train(CompactUNet.of(base, scheduler), "base", {name: first_channels(rows) for name, rows in latents.items()})}
    for variant in VARIANTS:
        expansion = None if variant == "v2" else [variant, OLD]
        network = CompactUNet.from_config({**base.config, "in_channels": 16, "out_channels": 16, "scheduler": scheduler, "expansion": expansion})
        network.load_state_dict(expand_unet(copy.deepcopy(base), 16, variant).state_dict())
        curves[variant] = train(network, variant, latents)
    return {"curves": curves}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--unet-steps", type=int, default=250)
    parser.add_argument("--latent-weight", type=float, default=1.0, help="of latent matching in Eq. (4)")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    assets = EmbeddedAssets(newest_version())
    latents = assets.latents()
    teacher = AutoencoderKL.from_pretrained(assets.root / "vae").eval()
    with tempfile.TemporaryDirectory() as folder:
        first = autoencoders(teacher, latents, TrainingSettings(asked.steps, batch=16, rate=1e-3, warmup=20, average=0.99), asked.latent_weight, Path(folder))
        print(first, flush=True)
        second = unets(assets, latents, TrainingSettings(asked.unet_steps, batch=32, rate=1e-3, warmup=20, average=0.99), Path(folder))
    write_result("expansion", {"autoencoders": first, "unets": second})


if __name__ == "__main__":
    main()
