"""What do latent channels, the size of the U-Net, its first weights and fine-tuning bring to super-resolution? The paper's ablations in miniature.

Every row is trained alike, for minutes: one step, regression to the HR latent (Eq. 22 with the HR term alone), the same pairs, seed and schedule.
PSNR of textured 256-pixel windows of held-out photographs. Rows of latent channels: 4 x 4 patches by PCA (16 or 4 components, variance^0.5
whitened) with the linear decoder, the same U-Net with random weights; `ceiling` is that autoencoder's own PSNR.

    python benchmarks/super_resolution_ablations.py --photographs FOLDER --run RUN [--steps 1500]
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from dated import write_result
from super_resolution import textured, whole
from torch import Tensor
from torch.nn import functional

from nas.cli.console import Terminal
from nas.home import nas_home
from nas.record import RunDirectory
from nas.spaces.tocsr import CompactUNet
from nas.spaces.tocsr.finetune import finetune
from nas.spaces.tocsr.sr.conditional import ConditionalModel, Diffused, conditional_unet
from nas.spaces.tocsr.sr.evaluate import BICUBIC, Pair, System, bicubic_up, evaluate
from nas.spaces.tocsr.sr.images import to_picture
from nas.spaces.tocsr.sr.pairs import Pairs, bicubic, decode, encode, to_tensor, upsample
from nas.spaces.tocsr.sr.recipe import Recipe
from nas.spaces.tocsr.sr.steps import pairs_of
from nas.spaces.tocsr.sr.train import Targets, Terms, distillation_loss, draw_lessons
from nas.spaces.tocsr.teacher import EMBEDDED, companions, load_teacher
from nas.spaces.tocsr.trainer import Trainer, TrainingSettings
from nas.summary import winner_folder

Map = Callable[[Tensor], Tensor]
LINEAR = 3000  # crops that the linear autoencoders are fitted to and their students trained on
FINETUNING = TrainingSettings(600, 64, rate=5e-4, warmup=50)


class Patches:
    """4 x 4 patches by PCA: `encode` to `channels` maps of unit total variance, `decode` back."""

    def __init__(self, images: Tensor, channels: int) -> None:
        x = functional.pixel_unshuffle(images, 4).movedim(1, -1).reshape(-1, 48)
        self._mean = x.mean(0)
        variance, axes = torch.linalg.eigh((x - self._mean).T @ (x - self._mean) / len(x))
        variance, axes = variance.flip(0)[:channels], axes.flip(1)[:, :channels]
        scale = variance**-0.25
        scale = scale / (scale**2 * variance).mean().sqrt()
        self._to, self._back = axes * scale, axes / scale

    def encode(self, images: Tensor) -> Tensor:
        return ((functional.pixel_unshuffle(images, 4).movedim(1, -1) - self._mean) @ self._to).movedim(-1, 1)

    def decode(self, latents: Tensor) -> Tensor:
        return functional.pixel_shuffle((latents.movedim(1, -1) @ self._back.T + self._mean).movedim(-1, 1), 4)


def trained(backbone: CompactUNet, pairs: Pairs, steps: int, work: Path, name: str) -> ConditionalModel:
    """A one-step model of the backbone."""
    model = ConditionalModel(conditional_unet(backbone), Diffused("residual", pairs.residual_scale())).requires_grad_(True)
    terms = Terms(teacher=0.0, hr=1.0)
    nothing = Targets(0, pairs.z_hr[:1])
    settings = TrainingSettings(steps, 8, rate=1e-3, warmup=100)
    Trainer(model, draw_lessons(pairs, nothing, terms), distillation_loss(model, terms), settings, origin={"ablation": name, "pairs": pairs.key}).run(
        work / f"{name.replace(' ', '-')}.safetensors", progress=Terminal()
    )
    return model.eval()


def as_system(model: ConditionalModel, to: Map, back: Map) -> System:
    """The model on whole windows."""

    @torch.no_grad()
    def enlarge(low: Any) -> Any:
        z = to(upsample(to_tensor(low)))
        noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
        return to_picture(back(model.one_step(noise, z))[0].clamp(-1, 1))

    return enlarge


def random_weights(network: CompactUNet, channels: int) -> CompactUNet:
    """The same architecture for so many latent channels, with fresh weights."""
    torch.manual_seed(0)
    fresh: CompactUNet = CompactUNet.from_config({**network.config, "in_channels": channels, "out_channels": channels})
    return fresh


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=Path("recipes/embedded.toml"))
    parser.add_argument("--photographs", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True, help="run directory of the search")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--work", type=Path, default=Path("build/ablations"))
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    asked.work.mkdir(parents=True, exist_ok=True)
    source = replace(Recipe.read(asked.recipe).photographs, folder=str(asked.photographs))
    training, held = source.load(Terminal())
    teacher = load_teacher()
    folder = winner_folder(RunDirectory.open(asked.run), None)
    winner = CompactUNet.from_pretrained(folder)
    vae, _ = companions(EMBEDDED, winner)
    pairs = pairs_of(training, vae, source.data, nas_home() / "pairs", Terminal())
    windows = [textured(whole(name, picture)) for name, picture in held.items()]
    tuned = CompactUNet.from_pretrained(finetune(folder, teacher, FINETUNING, 0.0, asked.work, "cpu", Terminal())["path"])
    rows: list[dict[str, Any]] = [row("bicubic", 0, bicubic_up, windows)]
    for name, backbone in (
        ("winner", winner),
        ("winner fine-tuned", tuned),
        ("winner with random weights", random_weights(winner, 16)),
        ("teacher", teacher.unet),
    ):
        model = trained(backbone, pairs, asked.steps, asked.work, name)
        rows.append(row(name, size(model), as_system(model, lambda x: encode(vae, x), lambda z: decode(vae, z)), windows))
        print(rows[-1], flush=True)
    images = pairs.hr[:LINEAR].float() / 127.5 - 1
    small = torch.cat([upsample(to_tensor(bicubic(crop.permute(1, 2, 0).numpy()))) for crop in pairs.hr[:LINEAR]])
    for channels in (16, 4):
        codec = Patches(images, channels)
        linear = Pairs(pairs.hr[:LINEAR], codec.encode(images).half(), codec.encode(small).half())
        model = trained(random_weights(winner, channels), linear, asked.steps, asked.work, f"{channels} channels")
        ceiling = psnr_of(lambda pair, codec=codec: to_picture(codec.decode(codec.encode(to_tensor(pair.high)))[0].clamp(-1, 1)), windows)
        rows.append({**row(f"{channels} channels, linear autoencoder", size(model), as_system(model, codec.encode, codec.decode), windows), "ceiling": ceiling})
        print(rows[-1], flush=True)
    write_result("super_resolution_ablations", {"steps": asked.steps, "batch": 8, "window": 256, "n_windows": len(windows), "rows": rows})


def row(name: str, params: int, system: System, windows: list[Pair]) -> dict[str, Any]:
    """A row of the result."""
    (found,) = evaluate({BICUBIC if not params else name: system}, windows, ["psnr", "psnr_y", "ssim", "gmsd"])
    return {"system": name, "unet_params": params, **found.values}


def psnr_of(make: Callable[[Pair], Any], windows: list[Pair]) -> float:
    """Mean PSNR of what is made of each window."""
    made = {pair.low.tobytes(): make(pair) for pair in windows}
    return evaluate({"it": lambda low: made[low.tobytes()]}, windows, ["psnr"])[0].values["psnr"]


def size(model: ConditionalModel) -> int:
    return sum(parameter.numel() for parameter in model.unet.parameters())


if __name__ == "__main__":
    main()
