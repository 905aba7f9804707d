"""The steps from a winner to a one-step model: `adapt` (Algorithm 3 of [TOC-SR]) and `distill` (Algorithm 4), each resumable, each an artefact.

An artefact is a pipeline folder whose `manifest.json` vouches for its files; it is written when its step is done.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch
from diffusers import AutoencoderKL, DDPMScheduler
from safetensors import SafetensorError
from torch import Tensor

from nas.arguments import whole
from nas.data import hash_tensors
from nas.errors import InputError
from nas.files import MANIFEST, read_json, whole_folder
from nas.progress import Progress
from nas.spaces.tocsr.compact import CompactUNet
from nas.spaces.tocsr.sr.conditional import ConditionalModel, Diffused, conditional_unet
from nas.spaces.tocsr.sr.degradation import degradation
from nas.spaces.tocsr.sr.pairs import Pairs, check_size, kept_pairs, make_pairs
from nas.spaces.tocsr.sr.photographs import Picture
from nas.spaces.tocsr.sr.pipeline import TOCSRPipeline
from nas.spaces.tocsr.sr.train import TARGET_BATCH, Terms, Weighting, diffusion_loss, distillation_loss, draw_lessons, draw_pairs, student_of, teacher_targets
from nas.spaces.tocsr.trainer import Evaluate, Trainer, TrainingSettings, seeded

EVERY = 500  # steps between two rows of a curve

MADE_FROM = "made_from.json"
"""Beside a pipeline: the key of what it was made from."""


@dataclass(frozen=True, slots=True)
class Data:
    """Which pairs to train on: `n` crops of `size` pixels of photographs, degraded."""

    n: int = 8000
    size: int = 96
    degradation: str = "bicubic"
    seed: int = 1

    def __post_init__(self) -> None:
        whole("crops", self.n, 1)
        check_size(self.size)
        degradation(self.degradation)


def pairs_of(photographs: Mapping[str, Picture], vae: AutoencoderKL, data: Data, folder: Path, progress: Progress) -> Pairs:
    """The pairs, made once and kept in `folder` under a name that all that decides them gives."""
    degrade = degradation(data.degradation)
    content = {name: hashlib.sha256(photographs[name].tobytes()).hexdigest() for name in progress.track(list(photographs), "photographs")}
    key = {"data": asdict(data), "photographs": content, "vae": _hash(vae)}
    return kept_pairs(
        folder / f"{_key(key)[:16]}.safetensors",
        key,
        lambda: make_pairs(photographs, vae, degrade, n=data.n, size=data.size, seed=data.seed, progress=progress),
    )


@dataclass(frozen=True, slots=True)
class Adaptation:
    """How the backbone becomes a conditional diffusion model."""

    target: Literal["residual", "latent"] = "residual"
    prediction_type: Literal["epsilon", "v_prediction"] | None = None
    weighting: Weighting = "v"


def adapt(
    backbone: CompactUNet,
    vae: AutoencoderKL,
    pairs: Pairs,
    folder: Path,
    *,
    how: Adaptation,
    settings: TrainingSettings,
    work: Path,
    progress: Progress,
    heldout: Pairs | None = None,
    context: Tensor | None = None,
    device: str = "cpu",
) -> TOCSRPipeline:
    """Trains the conditional model (Eq. 21) and writes its pipeline to `folder`; goes on from checkpoints in `work`.

    Args:
        backbone: a winner, or any network of the teacher's latents.
        vae: the teacher's autoencoder.
        pairs: to train on.
        folder: of the result.
        how: parametrisation and weighting.
        settings: of the training.
        work: where checkpoints are kept.
        progress: where to report.
        heldout: pairs that the curve is taken on.
        context: the fixed text `(1, T, D)`, folded in; None is zeros.
        device: where to train.
    """
    diffused = Diffused(how.target, pairs.residual_scale() if how.target == "residual" else 1.0)
    model = ConditionalModel(conditional_unet(backbone, how.prediction_type, context), diffused)
    origin = {"step": "adapt", "backbone": _hash(model.unet), "how": asdict(how), "pairs": pairs.key}
    key = _key({**origin, "settings": _lasting(settings)})
    if not _is_done(folder, key):
        trainer = Trainer(model, draw_pairs(pairs), diffusion_loss(model, how.weighting), settings, device=device, origin=origin)
        curve = trainer.run(work / f"adapt-{_key(origin)[:8]}.safetensors", _judge(heldout, model), EVERY, progress)
        pipeline = TOCSRPipeline(vae, _scheduler(model), None, model.unet, diffused.target, diffused.scale, "multi-step")
        made_from = {"key": key, "origin": origin, "settings": asdict(settings), "curve": curve}
        trainer.write(lambda: write_pipeline(pipeline, folder, made_from))
    return TOCSRPipeline.from_pretrained(folder)


@dataclass(frozen=True, slots=True)
class Distillation:
    """How the one-step student is trained: the terms of its loss, how many pairs the teacher samples and in how many steps."""

    terms: Terms = field(default_factory=Terms)
    targets: int = 3000
    steps: int = 20

    def __post_init__(self) -> None:
        whole("targets", self.targets, 1)
        whole("teacher_steps", self.steps, 1)


def distill(
    adapted: TOCSRPipeline,
    pairs: Pairs,
    folder: Path,
    *,
    how: Distillation,
    settings: TrainingSettings,
    work: Path,
    progress: Progress,
    heldout: Pairs | None = None,
    device: str = "cpu",
) -> TOCSRPipeline:
    """Trains the one-step student (Eq. 22-23 and further terms) and writes the pipeline of both models to `folder`; goes on from checkpoints in `work`."""
    adapted.to(device)
    teacher, vae = adapted.model(2), adapted.vae.requires_grad_(False)
    sampled = {"teacher": _hash(teacher.unet), "pairs": pairs.key, "n": how.targets, "steps": how.steps}
    origin = {"step": "distill", **sampled, "terms": asdict(how.terms)}
    key = _key({**origin, "settings": _lasting(settings)})
    if not _is_done(folder, key):
        path = work / f"targets-{_key(sampled)[:8]}.safetensors"
        targets = teacher_targets(teacher, pairs, how.targets, how.steps, path, key=_key(sampled), progress=progress)
        against = {"teacher": _error(targets.latents, pairs.z_hr), "lr": _error(pairs.z_lr[: how.targets], pairs.z_hr)}
        progress.note(f"squared error of the teacher's latents {against['teacher']:.4f}, of the LR latents themselves {against['lr']:.4f}")
        student = student_of(teacher)
        trainer = Trainer(student, draw_lessons(pairs, targets, how.terms), distillation_loss(student, how.terms, vae), settings, device=device, origin=origin)
        curve = trainer.run(work / f"distill-{_key(origin)[:8]}.safetensors", _judge(heldout, student), EVERY, progress)
        diffused = teacher.diffused
        pipeline = TOCSRPipeline(vae, adapted.scheduler, student.unet, teacher.unet, diffused.target, diffused.scale, how.terms.name)
        made_from = {"key": key, "origin": origin, "settings": asdict(settings), "targets": against, "curve": curve}
        trainer.write(lambda: write_pipeline(pipeline, folder, made_from))
    return TOCSRPipeline.from_pretrained(folder)


def write_pipeline(pipeline: TOCSRPipeline, folder: Path, made_from: Mapping[str, object]) -> None:
    """Saves the pipeline so that the folder is there whole or not at all, with what it was made from beside it."""
    try:
        with whole_folder(folder) as draft:
            save_without_paths(pipeline, draft)
            (draft / MADE_FROM).write_text(json.dumps(made_from, indent=1) + "\n", encoding="utf-8")
    except (OSError, SafetensorError) as error:  # the second of diffusers, for a full disk too
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot write {folder}: {reason}; the same command goes on from its checkpoint") from error


def save_without_paths(pipeline: TOCSRPipeline, folder: Path) -> None:
    """Saves the pipeline without the places it was loaded from, which diffusers would note in every config."""
    pipeline.save_pretrained(str(folder))
    for path in folder.rglob("*.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict) and content.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _judge(heldout: Pairs | None, model: ConditionalModel) -> Evaluate | None:
    """What a curve shows: the squared error of held-out latents after one step, and the LR latents' own."""
    if heldout is None:
        return None
    z_hr, z_lr = heldout.z_hr.float(), heldout.z_lr.float()
    noise = torch.randn(z_lr.shape, generator=seeded(0, 0))

    def judge(network: torch.nn.Module) -> dict[str, float]:
        del network
        place, parts = model.unet.device, zip(torch.split(noise, TARGET_BATCH), torch.split(z_lr, TARGET_BATCH), strict=True)
        found = torch.cat([model.one_step(start.to(place), low.to(place)).cpu() for start, low in parts])
        return {"one_step": _error(found, z_hr), "lr": _error(z_lr, z_hr)}

    return judge


def _error(found: Tensor, wanted: Tensor) -> float:
    return float((found.float() - wanted[: len(found)].float()).square().mean())


def _lasting(settings: TrainingSettings) -> dict[str, object]:
    return {name: value for name, value in asdict(settings).items() if name != "save_s"}


def _is_done(folder: Path, key: str) -> bool:
    made = folder / MADE_FROM
    return (folder / MANIFEST).is_file() and made.is_file() and bool(read_json(made, {"key": str})["key"] == key)


def _scheduler(model: ConditionalModel) -> DDPMScheduler:
    return DDPMScheduler.from_config({**model.scheduler, "clip_sample": False})


def _key(content: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _hash(module: torch.nn.Module) -> str:
    return hash_tensors(dict(module.state_dict()))
