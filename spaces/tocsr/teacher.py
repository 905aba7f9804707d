"""Teachers of the space `tocsr_unet`: the embedded one, a diffusers folder, or a hub id; with the samples to search on."""

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler
from torch import Tensor

from nas.data import Splits
from nas.errors import InputError, did_you_mean
from nas.progress import Progress, Quiet
from nas.spaces.tocsr.assets import EmbeddedAssets, shipped_version
from nas.spaces.tocsr.compact import CompactUNet
from nas.spaces.tocsr.data import Latents, load_pictures, noised, picture_files, split_by_picture

EMBEDDED = "embedded"

PARTS = "unet/ and vae/ (config.json, diffusion_pytorch_model.safetensors), scheduler/, text_encoder/ and tokenizer/"
"""What a teacher's folder holds."""

N_FIT, N_MEASURED = 768, 512  # samples of the embedded teacher's sets


@dataclass(frozen=True)
class Teacher:
    """A trained U-Net whose forward pass predicts noise, samples to calibrate and measure on, and what a user should know of it.

    `clean` are the latents that the `fit` samples were made from, on the CPU: what fine-tuning trains on.
    """

    name: str
    unet: CompactUNet
    data: Splits
    clean: Latents
    notes: tuple[str, ...] = ()


def load_teacher(name: str = EMBEDDED, data: str | None = None, device: str = "cpu", progress: Progress | None = None) -> Teacher:
    """The teacher that `--teacher` names.

    Args:
        name: "embedded" or "embedded-tight" (or a version such as "embedded-v2"), a diffusers folder (`unet/`, `scheduler/`, and for pictures
            `vae/`), or a hub id `owner/model`.
        data: folder of pictures; needed by every teacher but the embedded one.
        device: where the network and the samples go.
        progress: where to report.

    Raises:
        InputError: a folder that lacks a file, another architecture, no pictures, or a device that is not there.
    """
    target = check_device(device)
    if version := shipped_version(name):
        if data is not None:
            raise InputError("the embedded teacher brings its own samples; leave out --data, or give another --teacher")
        return _embedded(version, target)
    folder = _folder(name)
    unet = CompactUNet.from_teacher_folder(folder)
    if data is None:
        raise InputError(f"teacher '{name}' brings no samples; give a folder of pictures with --data")
    latents = _encode(folder, Path(data), unet, target, progress or Quiet())
    splits = split_by_picture(latents, alphas_cumprod(unet))
    clean = latents.rows(torch.nonzero(torch.isin(latents.groups, splits.fit.groups)).flatten())
    return Teacher(name, unet.to(target).eval(), _on(splits, target), clean)


def check_device(name: str) -> torch.device:
    """The device, or an error if it is not there."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"unknown device '{name}'; use cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise InputError(f"device '{name}' is not there: {torch.cuda.device_count()} CUDA devices found; use --device cpu")
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device '{name}' is not supported; use cpu, cuda or cuda:N")
    return device


def _embedded(name: str, device: torch.device) -> Teacher:
    assets = EmbeddedAssets(name)
    unet = CompactUNet.from_teacher_folder(assets.root)
    abar = alphas_cumprod(unet)
    latents = assets.latents()
    splits = Splits(noised(latents["fit"], abar, N_FIT, 1), noised(latents["measure"], abar, N_MEASURED, 2), noised(latents["verify"], abar, N_MEASURED, 3))
    version, active = assets.manifest["version"], assets.manifest["active_stages"]
    note = f"teacher: {version}, {active} of 9 stages active (docs/embedded_teacher.md)"
    return Teacher(version, unet.to(device).eval(), _on(splits, device), latents["fit"], (note,))


def _folder(name: str) -> Path:
    """A local folder as it is; a hub id is fetched through huggingface_hub."""
    folder = Path(name)
    if folder.is_dir():
        return folder
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        near = did_you_mean(name, (EMBEDDED, "embedded-tight"))
        raise InputError(f"no teacher folder '{name}'{near} (or give a diffusers folder, or a hub id such as owner/model)")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # that of whatever library its client uses

    wanted = [f"{part}/*.{suffix}" for part in ("unet", "vae", "scheduler", "text_encoder", "tokenizer") for suffix in ("json", "safetensors", "txt")]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except (HTTPError, OSError, ValueError) as error:
        way_out = f"give the same command again, or put {PARTS} of it into a folder and give that instead"
        raise InputError(f"teacher '{name}' cannot be fetched from the hub ({type(error).__name__}); {way_out}") from error


def companions(name: str, unet: CompactUNet, progress: Progress | None = None) -> tuple[AutoencoderKL, Tensor]:
    """The autoencoder of the teacher that `--teacher` names, and its null prompt `(1, T, D)`; `unet` is the teacher or made from it.

    Raises:
        InputError: the teacher has no autoencoder, or one of other channels.
    """
    version = shipped_version(name)
    folder = EmbeddedAssets(version).root if version else _folder(name)
    return _autoencoder(folder, int(unet.config.out_channels)), null_prompt(folder, unet, progress or Quiet())


def _autoencoder(folder: Path, channels: int) -> AutoencoderKL:
    if not (folder / "vae" / "config.json").is_file():
        raise InputError(f"teacher folder '{folder}' has no vae/config.json, which pictures are encoded with")
    try:
        vae: AutoencoderKL = AutoencoderKL.from_pretrained(folder / "vae", use_safetensors=True).eval()
    except Exception as error:  # diffusers builds whatever a config says: a wrong one fails anywhere in it
        raise InputError(f"teacher folder '{folder}': vae cannot be loaded: {_first_line(error)}") from error
    if vae.config.latent_channels != channels:
        raise InputError(f"teacher folder '{folder}': vae has {vae.config.latent_channels} latent channels, the unet reads {channels}")
    return vae


def _encode(folder: Path, pictures: Path, unet: CompactUNet, device: torch.device, progress: Progress) -> Latents:
    """Latents of a folder of pictures through the teacher's own autoencoder, with its null prompt."""
    files = picture_files(pictures, progress)
    vae = _autoencoder(folder, int(unet.config.in_channels)).to(device)
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    images, kept = load_pictures(files, int(unet.config.sample_size) * factor, progress)
    shift = vae.config.shift_factor or 0.0
    with torch.no_grad():
        modes = [vae.encode(image[None].to(device)).latent_dist.mode() for image in progress.track(list(images), "latents")]
    latents = (torch.cat(modes).cpu() - shift) * vae.config.scaling_factor
    text = null_prompt(folder, unet, progress)
    return Latents(latents, text.expand(len(kept), -1, -1), torch.arange(len(kept)))


def null_prompt(folder: Path, unet: CompactUNet, progress: Progress) -> Tensor:
    """Conditioning `(1, T, D)` of the empty prompt; zeros, with a note, where the folder has no text encoder."""
    if not (folder / "text_encoder" / "config.json").is_file() or not (folder / "tokenizer").is_dir():
        progress.note(f"teacher folder '{folder}' has no text encoder; the conditioning is zero")
        return torch.zeros(1, 77, int(unet.config.cross_attention_dim))
    from transformers import CLIPTextModel, CLIPTokenizer

    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", use_safetensors=True).eval()
        length = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
        tokens = tokenizer("", padding="max_length", max_length=length, return_tensors="pt")
        with torch.no_grad():
            states: Tensor = encoder(tokens.input_ids)[0]
    except BaseException as error:  # transformers builds whatever the files say; a panic of the tokenizers' Rust is no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise InputError(f"teacher folder '{folder}': text encoder or tokenizer cannot be used: {_first_line(error)}") from error
    return states


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def alphas_cumprod(unet: CompactUNet) -> Tensor:
    """The schedule the teacher was trained with, `(T,)`."""
    schedule: Tensor = DDPMScheduler.from_config(dict(unet.config.scheduler)).alphas_cumprod
    return schedule


def _on(splits: Splits, device: torch.device) -> Splits:
    return Splits(splits.fit.to(device), splits.measure.to(device), splits.verify.to(device))
