"""End-to-end fine-tuning of a winner with the denoising objective, Eq. (16) of [TOC-SR], optionally with distillation from the teacher.

    x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) n,   loss = (1 - w) |n - eps(x_t, t)|^2 + w |eps_T(x_t, t) - eps(x_t, t)|^2   (means over elements)

`w = 0` is Eq. (16). Trained on the latents that the blocks were calibrated on; `measure` and `verify` stay unseen.
"""

import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Generator, Tensor, nn

from nas.amounts import amount
from nas.blocks.store import block_key
from nas.data import Samples, hash_tensors
from nas.errors import DamagedFile, InputError
from nas.files import MANIFEST, Form, damage, read_json, whole_folder
from nas.progress import Progress
from nas.spaces.tocsr.compact import CompactUNet, architecture_diff
from nas.spaces.tocsr.data import Latents
from nas.spaces.tocsr.teacher import Teacher, alphas_cumprod
from nas.spaces.tocsr.trainer import Trainer, TrainingSettings

RESULT = "finetuning.json"

_FIGURES = {"divergence": int | float, "heldout_divergence": int | float, "heldout_loss": int | float}
_FORM: Form = {"winner": str, "params": int, "before": _FIGURES, "after": _FIGURES, "teacher_heldout_loss": int | float, "curve": [dict]}

_CHUNK = 64  # samples of a forward pass when figures are taken


def draw_latents(clean: Latents) -> Any:
    """Draws clean latents with their text, each as often as any other."""

    def draw(random: Generator, n: int) -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(clean.latents), (n,), generator=random)
        return clean.latents[rows], clean.text[rows]

    return draw


@dataclass(frozen=True)
class Denoising:
    """The loss: (x_0 `(B, C, H, W)`, text `(B, T, D)`) to a scalar, at uniform timesteps.

    Attributes:
        alphas_cumprod: the noise schedule, `(T,)`.
        teacher: predicts the noise to imitate; only asked where `weight` is positive.
        weight: `w` above, from 0 to 1.
    """

    alphas_cumprod: Tensor
    teacher: nn.Module | None = None
    weight: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise InputError(f"the weight of distillation must lie between 0 and 1, got {self.weight}")
        if self.weight and self.teacher is None:
            raise InputError("distillation needs a teacher")

    def __call__(self, network: nn.Module, batch: tuple[Tensor, Tensor], random: Generator) -> Tensor:
        """The loss of a batch."""
        clean, text = batch
        t = torch.randint(len(self.alphas_cumprod), (len(clean),), generator=random)
        noise = torch.randn(clean.shape, generator=random).to(clean)
        abar = self.alphas_cumprod[t].view(-1, 1, 1, 1).to(clean)
        inputs = abar.sqrt() * clean + (1 - abar).sqrt() * noise, t.to(clean.device), text
        found = network(*inputs, return_dict=False)[0].float()
        loss: Tensor = (1 - self.weight) * (found - noise).square().mean()
        if self.weight and self.teacher is not None:
            with torch.no_grad():
                wanted = self.teacher(*inputs, return_dict=False)[0].float()
            loss = loss + self.weight * (found - wanted).square().mean()
        return loss


class Figures:
    """What fine-tuning is judged by: L on `measure`, L and denoising loss on `verify`; the same noise every time."""

    def __init__(self, teacher: Teacher) -> None:
        self._sets = {"measure": teacher.data.measure, "verify": teacher.data.verify}
        self._wanted = {name: predictions(teacher.unet, samples) for name, samples in self._sets.items()}

    @property
    def teacher_heldout_loss(self) -> float:
        """The teacher's own denoising loss on `verify`."""
        return self._loss(self._wanted["verify"])

    def __call__(self, network: nn.Module) -> dict[str, float]:
        """`divergence`, `heldout_divergence`, `heldout_loss`."""
        found = {name: predictions(network, samples) for name, samples in self._sets.items()}
        differing = {name: float((found[name] - self._wanted[name]).square().mean()) for name in found}
        return {"divergence": differing["measure"], "heldout_divergence": differing["verify"], "heldout_loss": self._loss(found["verify"])}

    def _loss(self, found: Tensor) -> float:
        target = self._sets["verify"].target
        assert target is not None  # samples of a diffusion teacher carry their noise
        return float((found - target.to(found)).square().mean())


@torch.no_grad()
def predictions(network: nn.Module, samples: Samples) -> Tensor:
    """The noise that a network predicts for the samples, `(n, C, H, W)`."""
    parts = [network(*(part.inputs[name] for name in ("sample", "timestep", "text")), return_dict=False)[0].float() for part in samples.chunks(_CHUNK)]
    return torch.cat(parts)


def finetune(winner: Path, teacher: Teacher, settings: TrainingSettings, weight: float, run: Path, device: str, progress: Progress) -> dict[str, Any]:
    """Fine-tunes a saved winner into `RUN/finetuned-HASH`, a model folder; goes on where it was stopped, or returns the result that is there.

    Returns:
        `before`, `after` (see `Figures`), `teacher_heldout_loss`, `params`, `curve`, `settings`, `path`.

    Raises:
        DamagedFile: the winner or the checkpoint is not what was written.
        InputError: the winner is not a network of this teacher, or the loss is no longer finite.
    """
    origin = {"winner": _identity(winner), "weight": weight, "data": hash_tensors({"latents": teacher.clean.latents, "text": teacher.clean.text})}
    folder = run / f"finetuned-{block_key(**origin, settings={k: v for k, v in asdict(settings).items() if k != 'save_s'})[:8]}"
    if (done := _finished(folder)) is not None:
        return {**done, "path": str(folder)}
    network = CompactUNet.from_pretrained(winner).requires_grad_(True)
    _check_teacher(winner, network, teacher.unet)
    figures = Figures(teacher)
    loss = Denoising(alphas_cumprod(teacher.unet), teacher.unet, weight)
    trainer = Trainer(network, draw_latents(teacher.clean), loss, settings, device=device, origin=origin)
    checkpoint = run / f".{folder.name}.checkpoint"
    curve = trainer.run(checkpoint, figures, every=max(1, settings.steps // 10), progress=progress)
    result = {
        "winner": winner.name,
        "params": sum(parameter.numel() for parameter in network.parameters()),
        "before": {key: value for key, value in curve[0].items() if key not in ("step", "loss")},
        "after": {key: value for key, value in curve[-1].items() if key not in ("step", "loss")},
        "teacher_heldout_loss": figures.teacher_heldout_loss,
        "distillation": weight,
        "settings": asdict(settings),
        "curve": curve,
    }

    def write() -> None:
        _save(network, winner, result, folder)
        checkpoint.unlink(missing_ok=True)

    trainer.write(write)
    return {**result, "path": str(folder)}


def _identity(winner: Path) -> str:
    """Hash of the winner's manifest, which vouches for its files."""
    if wrong := damage(winner):
        raise DamagedFile(f"{wrong[0]}; `nas doctor {winner.parent} --repair` moves it aside, the same `nas search` saves it again")
    return block_key(manifest=read_json(winner / MANIFEST))


def _finished(folder: Path) -> dict[str, Any] | None:
    with suppress(DamagedFile):
        if folder.is_dir() and not damage(folder):
            result: dict[str, Any] = read_json(folder / RESULT, _FORM)
            return result
    return None


def _check_teacher(winner: Path, network: CompactUNet, teacher: CompactUNet) -> None:
    for key in ("in_channels", "out_channels", "cross_attention_dim", "block_out_channels"):
        if network.config[key] != teacher.config[key]:
            raise InputError(
                f"{winner}: the teacher must have {key} {network.config[key]} like the winner, got {teacher.config[key]}; give the run's own teacher"
            )


def _save(network: CompactUNet, winner: Path, result: Mapping[str, Any], folder: Path) -> None:
    try:
        with whole_folder(folder) as draft:
            network.save_pretrained(draft)
            shutil.copy(winner / "architecture.json", draft)
            (draft / "architecture.txt").write_text(architecture_diff(network) + "\n", encoding="utf-8")
            (draft / "README.md").write_text(_card(result), encoding="utf-8")
            (draft / RESULT).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    except (OSError, SafetensorError) as error:  # the second of diffusers, for a full disk too
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot write the model to {folder}: {reason}; the same command goes on from its checkpoint") from error


def _card(result: Mapping[str, Any]) -> str:
    names = {"divergence": "L", "heldout_divergence": "held-out L", "heldout_loss": "denoising loss, held out"}
    rows = [f"| {name} | {result['before'][key]:.4g} | {result['after'][key]:.4g} |" for key, name in names.items()]
    settings = "; ".join(f"{key} {value}" for key, value in result["settings"].items())
    return "\n".join([
        "---", "library_name: stage-nas", "tags: [neural-architecture-search, compression]", "---", "",
        f"# {result['winner']}, fine-tuned end to end", "",
        f"{amount(result['params'])} parameters. Trained with the denoising objective, distillation from the teacher weighing {result['distillation']:g}.",
        "It inherits its teacher's uses, limits, biases and licence; the winner's own card lies beside it in the run.", "",
        "| | winner | fine-tuned |", "|---|---|---|", *rows,
        f"| the teacher's denoising loss | {result['teacher_heldout_loss']:.4g} | |", "", f"Settings: {settings}.", "",
    ])  # fmt: skip
