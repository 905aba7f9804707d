"""What do latent channels, the size of the U-Net, its first weights and fine-tuning bring to super-resolution? The paper's ablations in miniature.

Every row is trained alike: one step, regression to the HR latent (Eq. 22 with the HR term alone), the same pairs and schedule, once for each seed (of
batches, noise and random weights). PSNR of textured 256-pixel windows of held-out photographs; rows are compared by paired t-tests over photographs (means over
seeds). Rows of latent channels: 4 x 4 patches by PCA (16 or 4 components, variance^0.5 whitened) with the linear decoder, the same U-Net with random
weights; `ceiling` is that autoencoder's own PSNR.

    python benchmarks/super_resolution_ablations.py --photographs FOLDER [--run RUN] [--steps 4000] [--seeds 3] [--device cuda] [--processes 6] [--out FOLDER]

Without --run the default search is done first. `--processes` trainings run side by side; the same command goes on where it was stopped.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dated import FOLDER, write_result
from scipy.stats import ttest_ind, ttest_rel
from super_resolution import textured, whole
from torch import Tensor
from torch.nn import functional

import nas
from nas.cli.console import Terminal
from nas.home import nas_home
from nas.run_directory import RunDirectory
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


def trained(backbone: CompactUNet, pairs: Pairs, name: str, asked: argparse.Namespace) -> ConditionalModel:
    """A one-step model of the backbone."""
    model = ConditionalModel(conditional_unet(backbone), Diffused("residual", pairs.residual_scale())).requires_grad_(True)
    terms = Terms(teacher=0.0, hr=1.0)
    nothing = Targets(0, pairs.z_hr[:1])
    settings = TrainingSettings(asked.steps, asked.batch, rate=1e-3, warmup=100, seed=asked.seed)
    trainer = Trainer(
        model,
        draw_lessons(pairs, nothing, terms),
        distillation_loss(model, terms),
        settings,
        device=asked.device,
        origin={"ablation": name, "pairs": pairs.key},
    )
    trainer.run(asked.work / f"{name.replace(' ', '-')}-{asked.seed}.safetensors", progress=Terminal())
    return model.eval()


def as_system(model: ConditionalModel, to: Map, back: Map) -> System:
    """The model on whole windows."""

    @torch.no_grad()
    def enlarge(low: Any) -> Any:
        z = to(upsample(to_tensor(low))).to(model.unet.device)
        noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(0)).to(z)
        return to_picture(back(model.one_step(noise, z).cpu())[0].clamp(-1, 1))

    return enlarge


def random_weights(network: CompactUNet, channels: int, seed: int) -> CompactUNet:
    """The same architecture for so many latent channels, with fresh weights."""
    torch.manual_seed(seed)
    fresh: CompactUNet = CompactUNet.from_config({**network.config, "in_channels": channels, "out_channels": channels})
    return fresh


class Ground:
    """What all rows stand on: the run's winner, photographs, training pairs."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self.asked = asked
        source = replace(Recipe.read(asked.recipe).photographs, folder=str(asked.photographs))
        training, held = source.load(Terminal())
        self.folder = winner_folder(RunDirectory.open(asked.run), None)
        self.winner = CompactUNet.from_pretrained(self.folder)
        self.vae, _ = companions(EMBEDDED, self.winner)
        self.pairs = pairs_of(training, self.vae.to(asked.device), source.data, nas_home() / "pairs", Terminal())
        self.vae.cpu()
        self.windows = [textured(whole(name, picture)) for name, picture in held.items()]

    def tuned(self) -> CompactUNet:
        """The winner after Eq. (16)."""
        found = finetune(self.folder, load_teacher(device=self.asked.device), FINETUNING, 0.0, self.asked.work, self.asked.device, Terminal())
        return CompactUNet.from_pretrained(found["path"])

    def nonlinear(self, name: str) -> dict[str, Any]:
        """A row on the embedded autoencoder's latents."""
        backbones: dict[str, Callable[[], CompactUNet]] = {
            "winner": lambda: self.winner,
            "winner fine-tuned": self.tuned,
            "winner with random weights": lambda: random_weights(self.winner, 16, self.asked.seed),
            "teacher": lambda: load_teacher().unet,
        }
        model = trained(backbones[name](), self.pairs, name, self.asked)
        return row(name, size(model), as_system(model, lambda x: encode(self.vae, x), lambda z: decode(self.vae, z)), self.windows)

    def linear(self, channels: int) -> dict[str, Any]:
        """A row on the latents of a linear autoencoder."""
        images = self.pairs.hr[:LINEAR].float() / 127.5 - 1
        small = torch.cat([upsample(to_tensor(bicubic(crop.permute(1, 2, 0).numpy()))) for crop in self.pairs.hr[:LINEAR]])
        codec = Patches(images, channels)
        pairs = Pairs(self.pairs.hr[:LINEAR], codec.encode(images).half(), codec.encode(small).half())
        model = trained(random_weights(self.winner, channels, self.asked.seed), pairs, f"{channels} channels", self.asked)
        ceiling = psnr_of(lambda pair: to_picture(codec.decode(codec.encode(to_tensor(pair.high)))[0].clamp(-1, 1)), self.windows)
        name = f"{channels} channels, linear autoencoder"
        return {**row(name, size(model), as_system(model, codec.encode, codec.decode), self.windows), "ceiling": ceiling}


ROWS: dict[str, Callable[[Ground], dict[str, Any]]] = {
    "winner": lambda ground: ground.nonlinear("winner"),
    "winner fine-tuned": lambda ground: ground.nonlinear("winner fine-tuned"),
    "winner with random weights": lambda ground: ground.nonlinear("winner with random weights"),
    "teacher": lambda ground: ground.nonlinear("teacher"),
    "16 channels": lambda ground: ground.linear(16),
    "4 channels": lambda ground: ground.linear(4),
}


def trained_apart(asked: argparse.Namespace, name: str, seed: int) -> dict[str, Any]:
    """A row, computed in a process of its own and kept in a file."""
    kept = asked.work / f"{name.replace(' ', '-')}-{seed}.json"
    if not kept.is_file():
        shared = [f"--{key}={getattr(asked, key)}" for key in ("recipe", "photographs", "run", "steps", "batch", "device", "work", "threads")]
        command = [sys.executable, __file__, *shared, "--row", name, "--seed", str(seed)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{name}, seed {seed}: {done.stderr[-2000:]}")
        kept.write_text(done.stdout.splitlines()[-1])
    found: dict[str, Any] = json.loads(kept.read_text())
    print(name, seed, found["psnr"], file=sys.stderr, flush=True)
    return found


def gathered(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """One row of the seeds' rows: means, the spread over seeds, each photograph's PSNR averaged over seeds."""
    mean = {key: float(np.mean([row[key] for row in rows])) for key in ("psnr", "psnr_y", "ssim", "gmsd", *(("ceiling",) if "ceiling" in rows[0] else ()))}
    return {
        "system": rows[0]["system"], "unet_params": rows[0]["unet_params"], **mean, "psnr_of_seeds": [row["psnr"] for row in rows],
        "psnr_each": np.mean([row["psnr_each"] for row in rows], axis=0).tolist(),
    }  # fmt: skip


def compared(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """How much better the first is, with the p of a paired t-test over photographs, and of a Welch test over seeds' means."""
    return {
        "first": first["system"], "second": second["system"], "psnr": first["psnr"] - second["psnr"],
        "p_photographs": float(ttest_rel(first["psnr_each"], second["psnr_each"]).pvalue),
        "p_seeds": float(ttest_ind(first["psnr_of_seeds"], second["psnr_of_seeds"], equal_var=False).pvalue),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=Path("recipes/embedded.toml"))
    parser.add_argument("--photographs", type=Path, required=True)
    parser.add_argument("--run", type=Path, help="run directory of the search")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("build/ablations"))
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--row", choices=ROWS, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    asked.work.mkdir(parents=True, exist_ok=True)
    if asked.run is None:
        asked.run = asked.work / "runs" / "search"
        nas.search("tocsr_unet", 0.005, workdir=asked.run.parent, name=asked.run.name, progress=Terminal())
    if asked.row:
        print(json.dumps(ROWS[asked.row](Ground(asked))))
        return
    ground = Ground(asked)
    ground.tuned()  # once, before the processes that need it
    jobs = [(name, seed) for seed in range(asked.seeds) for name in ROWS]
    with ThreadPoolExecutor(asked.processes) as pool:
        found = list(pool.map(lambda job: trained_apart(asked, *job), jobs))
    by_name = {name: gathered([row for (other, _), row in zip(jobs, found, strict=True) if other == name]) for name in ROWS}
    versus = [("16 channels", "4 channels"), ("winner", "teacher"), ("winner fine-tuned", "winner"), ("winner", "winner with random weights")]
    content = {
        "steps": asked.steps, "batch": asked.batch, "seeds": asked.seeds, "device": asked.device, "window": 256, "n_windows": len(ground.windows),
        "teacher": load_teacher().name, "rows": [row("bicubic", 0, bicubic_up, ground.windows), *by_name.values()],
        "compared": [compared(by_name[first], by_name[second]) for first, second in versus],
    }  # fmt: skip
    write_result("super_resolution_ablations", content, asked.out)


def row(name: str, params: int, system: System, windows: list[Pair]) -> dict[str, Any]:
    """A row of the result."""
    (found,) = evaluate({BICUBIC if not params else name: system}, windows, ["psnr", "psnr_y", "ssim", "gmsd"])
    return {"system": name, "unet_params": params, **found.values, "psnr_each": list(found.each["psnr"])}


def psnr_of(make: Callable[[Pair], Any], windows: list[Pair]) -> float:
    """Mean PSNR of what is made of each window."""
    made = {pair.low.tobytes(): make(pair) for pair in windows}
    return evaluate({"it": lambda low: made[low.tobytes()]}, windows, ["psnr"])[0].values["psnr"]


def size(model: ConditionalModel) -> int:
    return sum(parameter.numel() for parameter in model.unet.parameters())


if __name__ == "__main__":
    main()
