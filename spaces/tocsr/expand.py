"""Algorithm 2 of [TOC-SR]: from a latent-diffusion teacher with few latent channels to one with more, autoencoder first, then both together.

1  the autoencoder, expanded, imitates a teacher autoencoder and reconstructs                                        Eq. (4)
2  the U-Net's first and last convolutions are expanded, and both are trained by the denoising loss, Eq. (4) beside it   Eq. (5)
"""

import inspect
import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors import SafetensorError
from torch import Generator, Tensor, nn

from nas.amounts import amount
from nas.blocks.store import block_key
from nas.errors import DamagedFile, InputError, RunMismatch
from nas.files import Form, damage, read_json, whole_folder
from nas.progress import Progress
from nas.spaces.tocsr.compact import CompactUNet
from nas.spaces.tocsr.expansion import Distilled, Variant, check_vae_teacher, expand_autoencoder, expand_unet, taken_over, teacher_latents
from nas.spaces.tocsr.folders import PictureFolder
from nas.spaces.tocsr.resources import own_device
from nas.spaces.tocsr.teacher import alphas_cumprod, check_device, null_prompt
from nas.spaces.tocsr.trainer import Trainer, TrainingSettings

RESULT = "expansion.json"

_PSNR = {"psnr": int | float}
_FORM: Form = {
    "autoencoder": [_PSNR], "joint": [{**_PSNR, "heldout_loss": int | float}], "options": {"autoencoder": dict, "joint": dict}, "origin?": dict, "path": str,
}  # fmt: skip

FLUX = "black-forest-labs/FLUX.1-schnell"
"""The default teacher autoencoder, 16 channels; its `vae` folder."""


@dataclass(frozen=True, slots=True)
class ExpansionOptions:
    """What is expanded to what.

    Attributes:
        channels: latent channels afterwards.
        variant: which first and last convolutions the U-Net gets (Table S4).
        weight: of latent matching beside reconstruction in Eq. (4).
        heldout: pictures that are not trained on, which figures are taken on.
        autoencoder: how step 1 is trained.
        joint: how step 2 is trained.
    """

    autoencoder: TrainingSettings
    joint: TrainingSettings
    channels: int = 16
    variant: Variant = "v2"
    weight: float = 1.0
    heldout: int = 16


class Joint(nn.Module):
    """Autoencoder and U-Net in one: Eq. (5), with Eq. (4) beside it, without which the encoder could make latents that are easy to denoise and mean nothing."""

    def __init__(self, distilled: Distilled, unet: CompactUNet) -> None:
        super().__init__()
        self.distilled, self.unet = distilled, unet
        self.register_buffer("abar", alphas_cumprod(unet), persistent=False)
        self.abar: Tensor

    def forward(self, images: Tensor, wanted: Tensor, text: Tensor, t: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The denoising loss and that of Eq. (4)."""
        fit, latents = self.distilled(images, wanted)
        a = self.abar[t].view(-1, 1, 1, 1).to(latents)
        found = self.unet(a.sqrt() * latents + (1 - a).sqrt() * noise, t, text, return_dict=False)[0]
        return (found - noise).float().square().mean(), fit


def load_vae(name: str) -> AutoencoderKL:
    """An autoencoder from its folder, from a model folder with `vae/`, or from the hub.

    Raises:
        InputError: there is none; says which files are needed and where to put them.
    """
    folder = Path(name)
    inside = next((place for place in (folder, folder / "vae") if (place / "config.json").is_file()), None)
    files = "vae/config.json and vae/diffusion_pytorch_model.safetensors"
    try:
        if inside is not None:
            return AutoencoderKL.from_pretrained(inside, use_safetensors=True)
        if name.count("/") != 1 or name.startswith((".", "/", "~")):
            raise InputError(f"no autoencoder in '{name}'; give a folder with {files}, or a hub id such as {FLUX}")
        return AutoencoderKL.from_pretrained(name, subfolder="vae", use_safetensors=True)
    except InputError:
        raise
    except Exception as error:  # diffusers and the hub raise whatever comes on the way
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise InputError(f"autoencoder '{name}' cannot be loaded ({reason}); download its {files} and give their folder with --vae-teacher") from error


def expand(teacher: Path, vae_teacher: str, pictures: PictureFolder, options: ExpansionOptions, to: Path, *, device: str, progress: Progress) -> dict[str, Any]:
    """Writes the expanded teacher as a diffusers folder; goes on where it was stopped, or returns the result that is there.

    Returns:
        `autoencoder` and `joint`: their curves of losses and held-out figures; `params`, `options`, `origin` (teachers and pictures), `path`.

    Raises:
        InputError: a network, folder or disk that cannot be used; before any work starts.
        RunMismatch: the folder holds the result of other options, teachers or pictures.
    """
    check_device(device := own_device(device))
    train, heldout = pictures.apart(options.heldout)
    origin = {"pictures": train.fingerprint, "teacher": str(teacher), "vae_teacher": vae_teacher, "weight": options.weight, "variant": options.variant}
    if (done := _finished(to)) is not None:
        if _decisive(done["options"]) != _decisive(asdict(options)):
            raise RunMismatch(f"'{to}' holds an expansion with other options; give another --to, or move it away")
        if wrong := [name for name, value in done.get("origin", {}).items() if value != origin.get(name)]:  # results up to 2026-11-22 do not say
            raise RunMismatch(f"'{to}' holds an expansion with {wrong[0]} '{done['origin'][wrong[0]]}'; give another --to, or move it away")
        return done
    if to.exists():
        raise InputError(f"'{to}' exists already; give a folder that does not with --to")
    old = CompactUNet.from_teacher_folder(teacher)
    vae, guide = load_vae(str(teacher)), load_vae(vae_teacher)
    check_vae_teacher(guide, vae, options.channels)
    unet = expanded_unet(old, options.channels, options.variant)
    _check_room(to, unet, vae, device)
    wider = expand_autoencoder(vae, options.channels)
    wider.register_to_config(**taken_over(vae, guide))
    losses = GuidedLosses(guide.requires_grad_(False).to(device), null_prompt(teacher, old, progress), int(old.config.scheduler["num_train_timesteps"]))
    job = _Job(Distilled(wider, options.weight), unet, losses, train, heldout.centres())
    work = to.with_name(f".{to.name}.training")
    trainer, curves = job.run(options, work, origin, device, progress)
    result = {**curves, "params": sum(p.numel() for p in unet.parameters()), "options": asdict(options), "origin": origin, "path": str(to)}

    def write() -> None:
        _save(teacher, wider, unet, result, to)
        shutil.rmtree(work, ignore_errors=True)

    trainer.write(write)
    return result


def _finished(folder: Path) -> dict[str, Any] | None:
    """The result in the folder of an expansion that ended, as its manifest vouches for."""
    with suppress(DamagedFile):
        if folder.is_dir() and not damage(folder):
            result: dict[str, Any] = read_json(folder / RESULT, _FORM)
            return result if result["autoencoder"] and result["joint"] else None
    return None


def _decisive(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as JSON holds them, without how often training is saved."""
    steps = {name: {key: value for key, value in options[name].items() if key != "save_s"} for name in ("autoencoder", "joint")}
    return {**options, **steps}


def expanded_unet(old: CompactUNet, channels: int, variant: Variant) -> CompactUNet:
    """The U-Net with more channels; it predicts noise, whatever it does natively."""
    stock = UNet2DConditionModel.from_config(_stock_config(old))
    stock.load_state_dict(old.state_dict())
    wide = expand_unet(stock, channels, variant)
    model: CompactUNet
    if variant == "v2":
        model = CompactUNet.of(wide, old.config.scheduler)
        return model
    own = {"scheduler": dict(old.config.scheduler), "expansion": [variant, stock.config.in_channels]}
    model = CompactUNet.from_config({**wide.config, **own})
    model.load_state_dict(wide.state_dict())
    return model


def _check_room(to: Path, unet: nn.Module, vae: nn.Module, device: str) -> None:
    """Raises unless memory holds what training keeps (weights, gradients, average, two moments), and the disk two checkpoints and the models."""
    weights = 4 * sum(p.numel() for module in (unet, vae) for p in module.parameters())
    memory = torch.cuda.mem_get_info(device)[0] if device.startswith("cuda") else psutil.virtual_memory().available
    if 5 * weights > memory:
        raise InputError(
            f"expansion needs {amount(5 * weights)}B of memory on '{device}' beside the activations, {amount(memory)}B are free; use another device"
        )
    need = 9 * weights
    place = next(path for path in to.absolute().parents if path.exists())
    free = shutil.disk_usage(place).free
    if need > free:
        raise InputError(f"expansion needs {amount(need)}B on disk for checkpoints and models, '{place}' has {amount(free)}B free; give another --to")


@dataclass(frozen=True)
class GuidedLosses:
    """Losses of Algorithm 2 on pictures `(B, 3, H, W)`.

    Attributes:
        guide: the teacher autoencoder, on the device to train on.
        text: the null prompt, `(1, T, D)`.
        timesteps: of the noise schedule.
    """

    guide: AutoencoderKL
    text: Tensor
    timesteps: int = 1000

    def matching(self, network: nn.Module, images: Tensor, random: Generator) -> Tensor:
        """Eq. (4), for a `Distilled`."""
        del random
        loss: Tensor = network(images, teacher_latents(self.guide, images))[0]
        return loss

    def denoising(self, network: nn.Module, images: Tensor, random: Generator) -> Tensor:
        """Eq. (5) with Eq. (4) beside it, for a `Joint`."""
        denoising, fit = self.both(network, images, random)
        return denoising + fit

    def both(self, network: nn.Module, images: Tensor, random: Generator) -> tuple[Tensor, Tensor]:
        """The denoising loss and that of Eq. (4), of a `Joint`."""
        wanted = teacher_latents(self.guide, images)
        t = torch.randint(self.timesteps, (len(images),), generator=random).to(images.device)
        noise = torch.randn(wanted.shape, generator=random).to(wanted)
        losses: tuple[Tensor, Tensor] = network(images, wanted, self.text.to(images).expand(len(images), -1, -1), t, noise)
        return losses


@dataclass(frozen=True)
class _Job:
    """The two trainings on one set of pictures."""

    distilled: Distilled
    unet: CompactUNet
    losses: GuidedLosses
    pictures: PictureFolder
    heldout: Tensor

    def run(self, options: ExpansionOptions, work: Path, origin: Mapping[str, Any], device: str, progress: Progress) -> tuple[Trainer, dict[str, Any]]:
        """The second trainer, and both curves."""
        joint = Joint(self.distilled, self.unet)
        first = Trainer(self.distilled, self.pictures.crops, self.losses.matching, options.autoencoder, device=device, origin=origin)
        curve = first.run(work / "autoencoder", self.reconstruction, every=max(1, options.autoencoder.steps // 10), progress=progress)
        matched = block_key(origin=dict(origin), settings=asdict(replace(options.autoencoder, save_s=0)))
        second = Trainer(joint, self.pictures.crops, self.losses.denoising, options.joint, device=device, origin={"autoencoder": matched})
        joined = second.run(work / "joint", self._judged, every=max(1, options.joint.steps // 10), progress=progress)
        return second, {"autoencoder": curve, "joint": joined}

    def reconstruction(self, network: nn.Module) -> dict[str, float]:
        """Held-out PSNR in dB (pictures in [-1, 1], a peak of 2)."""
        assert isinstance(network, Distilled)
        errors = []
        for picture in torch.split(self.heldout, 1):
            image = picture.to(network.vae.device)
            found = network.vae.decode(network.vae.encode(image).latent_dist.mode()).sample.clamp(-1, 1)
            errors.append((found - image).float().square().mean().cpu())
        return {"psnr": float((10 * torch.log10(4 / torch.stack(errors).clamp(min=1e-10))).mean())}

    def _judged(self, network: nn.Module) -> dict[str, float]:
        """Held-out denoising loss, the same noise every time, and PSNR."""
        assert isinstance(network, Joint)
        random = Generator().manual_seed(0)
        device = network.distilled.vae.device
        losses = [float(self.losses.both(network, picture.to(device), random)[0]) for picture in torch.split(self.heldout, 4)]
        return {"heldout_loss": sum(losses) / len(losses), **self.reconstruction(network.distilled)}


def _save(teacher: Path, vae: AutoencoderKL, unet: CompactUNet, result: Mapping[str, Any], to: Path) -> None:
    try:
        with whole_folder(to) as draft:
            vae.save_pretrained(draft / "vae")
            _as_stock(unet).save_pretrained(draft / "unet")
            for name in ("scheduler", "text_encoder", "tokenizer"):
                if (teacher / name).is_dir():
                    shutil.copytree(teacher / name, draft / name)
            (draft / RESULT).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    except (OSError, SafetensorError) as error:  # the second of diffusers, for a full disk too
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot write to '{to}': {reason}; the same command goes on from its checkpoints") from error


def _as_stock(unet: CompactUNet) -> UNet2DConditionModel:
    """The network as diffusers' own class where it is one (variant v2), so that anyone can load it."""
    if unet.config.get("expansion") is not None:
        return unet
    with torch.device("meta"):
        stock: UNet2DConditionModel = UNet2DConditionModel.from_config(_stock_config(unet))
    stock.load_state_dict(unet.state_dict(), assign=True)
    return stock


def _stock_config(unet: CompactUNet) -> dict[str, Any]:
    """The entries of its config that a stock network takes; it would warn of the others."""
    return {key: unet.config[key] for key in inspect.signature(UNet2DConditionModel.__init__).parameters if key in unet.config}
