"""Does `recipes/sd15.toml` run from end to end at SD1.5's true architecture, with random weights on tiny pictures, a few steps of each stage?

No figure means anything but seconds and memory. The networks are those of the recipe: SD1.5's U-Net (860 M parameters), autoencoder (84 M) and text encoder
(123 M), and FLUX's autoencoder (16 channels, 84 M), from which the expansion learns; `--width 32` divides their widths by ten, to try the script itself. Every
entry of the recipe stays but those that say how much, where and how close: `SHORT`. `--expanded` leaves the first step out, which at full width takes 19 GB: it
starts from a sixteen-channel U-Net and autoencoder with random weights instead. The same command goes on where it was stopped; every leg, killed or
not, leaves its command, seconds and peak of memory in the result.

    python benchmarks/sd15_rehearsal.py --photographs FOLDER [--device cuda] [--width 320] [--expanded] [--work build/rehearsal] [--out FOLDER]
"""

import argparse
import json
import resource
import time
from pathlib import Path
from threading import Event, Thread
from typing import Any

import torch
from dated import FOLDER, command, write_result
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from nas.cli.console import Terminal
from nas.files import read_toml, write_whole
from nas.spaces.tocsr.data import picture_files
from nas.spaces.tocsr.sr.pipeline import TOCSRPipeline
from nas.spaces.tocsr.sr.recipe import Recipe
from nas.spaces.tocsr.sr.run import run

SHORT: dict[str, dict[str, Any]] = {
    "expand": {"size": 64, "heldout": 2, "steps": 3, "joint_steps": 2, "batch": 2, "accumulate": 2},
    "search": {"eps": 1e9, "trials": 3, "calibration_steps": 2},  # of random networks every candidate is as good as any other
    "finetune": {"steps": 3, "batch": 2, "accumulate": 2},
    "photographs": {"longest": 160, "crops": 16, "size": 64},
    "adapt": {"steps": 3, "batch": 2, "accumulate": 2},
    "distill": {"steps": 3, "batch": 2, "accumulate": 2, "targets": 4, "teacher_steps": 2},
    "evaluate": {"steps": [1, 2]},
}
"""What is changed of the recipe besides folders."""

FULL = 320  # SD1.5's first width


def autoencoder(channels: int, width: int, **config: Any) -> AutoencoderKL:
    """SD1.5's autoencoder for so many latent channels, at a share of its widths."""
    widths = tuple(128 * factor * width // FULL // 4 * 4 for factor in (1, 2, 4, 4))
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, block_out_channels=widths, layers_per_block=2,
        latent_channels=channels, norm_num_groups=32 if width == FULL else 4, **config,
    )  # fmt: skip


def write_teacher(folder: Path, guide: Path, width: int, channels: int, latent: int) -> dict[str, int]:
    """A diffusers folder like SD1.5's and one like FLUX's autoencoder, with random weights; their parameters. `latent` is the side of samples."""
    torch.manual_seed(0)
    text = 768 if width == FULL else 48
    widths = tuple(width * factor for factor in (1, 2, 4, 4))
    groups = 32 if width == FULL else 4
    unet = UNet2DConditionModel(
        sample_size=latent, in_channels=channels, out_channels=channels, block_out_channels=widths, cross_attention_dim=text, norm_num_groups=groups
    )
    heads, layers = (12, 12) if width == FULL else (2, 1)
    encoder = CLIPTextModel(
        CLIPTextConfig(hidden_size=text, intermediate_size=4 * text, num_attention_heads=heads, num_hidden_layers=layers, projection_dim=text)
    )
    modules: dict[str, nn.Module] = {"unet": unet, "vae": autoencoder(channels, width, scaling_factor=0.18215), "text_encoder": encoder}
    for name, module in modules.items():
        module.save_pretrained(folder / name)  # type: ignore[operator]
    schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False, "steps_offset": 1}
    DDPMScheduler(num_train_timesteps=1000, **schedule).save_pretrained(folder / "scheduler")
    write_tokenizer(folder / "tokenizer")
    flux = {"scaling_factor": 0.3611, "shift_factor": 0.1159, "use_quant_conv": False, "use_post_quant_conv": False}
    modules["vae teacher"] = autoencoder(16, width, **flux)
    modules["vae teacher"].save_pretrained(guide)
    return {name: sum(p.numel() for p in module.parameters()) for name, module in modules.items()}


def write_tokenizer(folder: Path) -> None:
    """CLIP's tokenizer with no words: enough for the empty prompt, whose two tokens have the numbers that they have in SD1.5."""
    folder.mkdir()
    start, end = "<|startoftext|>", "<|endoftext|>"
    (folder / "vocab.json").write_text(json.dumps({"a": 0, start: 49406, end: 49407}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "bos_token": start, "eos_token": end, "unk_token": end, "pad_token": end}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def shortened(recipe: Path, work: Path, photographs: Path, expanded: bool) -> Recipe:
    """The recipe on our folders, with little to do."""
    content = read_toml(recipe)
    content["expand"] |= {"teacher": str(work / "sd15"), "vae_teacher": str(work / "flux"), "data": [str(photographs)]}
    content["search"]["data"] = content["photographs"]["folder"] = str(photographs)
    for name, table in SHORT.items():
        content[name] |= table
    content["photographs"]["held_out"] = [picture_files(photographs)[0].name]
    if expanded:
        del content["expand"]
        content["search"]["teacher"] = str(work / "sd15")
    return Recipe.of(content, recipe)


class Leg(Thread):
    """What this process has taken so far, written every few seconds, so that a killed one is known too."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / f"{len(list(folder.glob('*.json'))):03}.json"
        self._begun, self._over = time.monotonic(), Event()
        self._write()

    def run(self) -> None:
        """Until the process ends."""
        while not self._over.wait(5):
            self._write()

    def end(self) -> list[dict[str, Any]]:
        """All legs, this one to the end."""
        self._over.set()
        self.join()
        self._write()
        return [json.loads(path.read_text()) for path in sorted(self._file.parent.glob("*.json"))]

    def _write(self) -> None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        found = {
            "command": command(),
            "seconds": round(time.monotonic() - self._begun, 1),
            "cpu_s": round(used.ru_utime + used.ru_stime, 1),
            "peak_rss_gb": round(used.ru_maxrss / 2**20, 2),
        }
        write_whole(self._file, json.dumps(found).encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=Path("recipes/sd15.toml"))
    parser.add_argument("--photographs", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--width", type=int, default=FULL)
    parser.add_argument("--expanded", action="store_true")
    parser.add_argument("--latent", type=int, default=8, help="side of the samples that the search is done on")
    parser.add_argument("--work", type=Path, default=Path("build/rehearsal"))
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    leg = Leg(asked.work / "legs")
    leg.start()
    about = asked.work / "params.json"
    if not about.is_file():
        found = write_teacher(asked.work / "sd15", asked.work / "flux", asked.width, 16 if asked.expanded else 4, asked.latent)
        about.write_text(json.dumps(found))
    steps = run(shortened(asked.recipe, asked.work, asked.photographs, asked.expanded), asked.work / "runs", Terminal(), asked.device)
    made = TOCSRPipeline.from_pretrained(next(step.path for step in steps if step.step == "distill"))
    legs = leg.end()
    content = {
        "device": asked.device,
        "width": asked.width,
        "expanded": asked.expanded,
        "latent": asked.latent,
        "params": json.loads(about.read_text()) | {"one-step unet": sum(p.numel() for p in made.unet.parameters())},
        "steps": [{"step": step.step, "seconds": step.seconds, "fingerprint": step.fingerprint} for step in steps],
        "legs": legs,
        "seconds": sum(one["seconds"] for one in legs),
        "peak_rss_gb": max(one["peak_rss_gb"] for one in legs),
        "peak_gpu_gb": torch.cuda.max_memory_allocated() / 1e9 if asked.device.startswith("cuda") else None,
        "evaluation": json.loads((asked.work / "runs" / "sd15" / "evaluation.json").read_text()),
    }
    name = "sd15_rehearsal" + (f"_width_{asked.width}" if asked.width != FULL else "") + ("" if asked.device == "cpu" else f"_{asked.device.split(':')[0]}")
    write_result(name, content, asked.out)


if __name__ == "__main__":
    main()
