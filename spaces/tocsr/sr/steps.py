"""The steps from a winner to a one-step model: `adapt` (Algorithm 3 of [TOC-SR]) and `distill` (Algorithm 4), each resumable, each an artefact.

An artefact is a pipeline folder whose `manifest.json` vouches for its files; it is written when its step is done.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler

from nas.data import hash_tensors
from nas.errors import InputError
from nas.files import MANIFEST, write_manifest, write_whole
from nas.progress import Progress
from nas.spaces.tocsr.compact import CompactUNet
from nas.spaces.tocsr.sr.conditional import ConditionalModel, Diffused, conditional_unet
from nas.spaces.tocsr.sr.degradation import degradation
from nas.spaces.tocsr.sr.loop import Schedule, train
from nas.spaces.tocsr.sr.pairs import Pairs, Picture, kept_pairs, make_pairs
from nas.spaces.tocsr.sr.pipeline import TOCSRPipeline
from nas.spaces.tocsr.sr.train import Terms, Weighting, diffusion_loss, distillation_loss, student_of, teacher_targets


@dataclass(frozen=True, slots=True)
class Data:
    """Which pairs to train on: `n` crops of `size` pixels of photographs, degraded."""

    n: int = 8000
    size: int = 96
    degradation: str = "bicubic"
    seed: int = 1


def pairs_of(photographs: Mapping[str, Picture], vae: AutoencoderKL, data: Data, path: Path, progress: Progress) -> Pairs:
    """The pairs, made once and kept in `path`."""
    degrade = degradation(data.degradation)
    key = {"data": asdict(data), "photographs": {name: hashlib.sha256(p.tobytes()).hexdigest() for name, p in photographs.items()}, "vae": _hash(vae)}
    return kept_pairs(path, key, lambda: make_pairs(photographs, vae, degrade, n=data.n, size=data.size, seed=data.seed, progress=progress))


@dataclass(frozen=True, slots=True)
class Adaptation:
    """How the backbone becomes a conditional diffusion model."""

    target: str = "residual"
    prediction_type: str | None = None
    weighting: Weighting = "v"


def adapt(
    backbone: CompactUNet, vae: AutoencoderKL, pairs: Pairs, folder: Path, *, how: Adaptation, schedule: Schedule, work: Path, progress: Progress
) -> TOCSRPipeline:
    """Trains the conditional model (Eq. 21) and writes its pipeline to `folder`; goes on from checkpoints in `work`."""
    diffused = Diffused(how.target, pairs.residual_scale() if how.target == "residual" else 1.0)
    model = ConditionalModel(conditional_unet(backbone, how.prediction_type), diffused)
    key = _key({"backbone": _hash(backbone), "how": asdict(how), "pairs": _pairs_key(pairs)})
    if not _is_done(folder, key):
        train(model, diffusion_loss(model, pairs, schedule.batch, how.weighting), schedule, work / "adapt.safetensors", progress, key=key)
        pipeline = TOCSRPipeline(vae, _scheduler(model), None, model.unet, diffused.target, diffused.scale, "multi-step")
        write_pipeline(pipeline, folder, key)
    return TOCSRPipeline.from_pretrained(folder)


@dataclass(frozen=True, slots=True)
class Distillation:
    """How the one-step student is trained: the terms of its loss, how many pairs the teacher samples and in how many steps."""

    terms: Terms = field(default_factory=Terms)
    targets: int = 3000
    steps: int = 20


def distill(adapted: TOCSRPipeline, pairs: Pairs, folder: Path, *, how: Distillation, schedule: Schedule, work: Path, progress: Progress) -> TOCSRPipeline:
    """Trains the one-step student (Eq. 22-23 and further terms) and writes the pipeline of both models to `folder`; goes on from checkpoints in `work`."""
    teacher = adapted.model(2)
    of_teacher = {"teacher": _hash(teacher.unet), "pairs": _pairs_key(pairs)}
    key = _key({**of_teacher, "how": asdict(how)})
    if not _is_done(folder, key):
        targets = teacher_targets(teacher, pairs, how.targets, how.steps, work / "targets.safetensors", key=_key(of_teacher), progress=progress)
        student = student_of(teacher)
        adapted.vae.requires_grad_(False)
        loss = distillation_loss(student, pairs, targets, how.terms, schedule.batch, adapted.vae)
        train(student, loss, schedule, work / f"distill-{key[:8]}.safetensors", progress, key=key)
        diffused = teacher.diffused
        pipeline = TOCSRPipeline(adapted.vae, adapted.scheduler, student.unet, teacher.unet, diffused.target, diffused.scale, how.terms.name)
        write_pipeline(pipeline, folder, key)
    return TOCSRPipeline.from_pretrained(folder)


def write_pipeline(pipeline: TOCSRPipeline, folder: Path, key: str) -> None:
    """Saves the pipeline so that the folder is there whole or not at all; `key` names what it was made from."""
    draft = folder.with_name(f".{folder.name}.part")
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.parent.mkdir(parents=True, exist_ok=True)
        pipeline.save_pretrained(str(draft))
        write_whole(draft / "made_from.json", json.dumps({"key": key}).encode())
        write_manifest(draft)
        if folder.exists():
            shutil.rmtree(folder)
        draft.rename(folder)
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror}; free some space or choose another place") from error


def _is_done(folder: Path, key: str) -> bool:
    made = folder / "made_from.json"
    return (folder / MANIFEST).is_file() and made.is_file() and json.loads(made.read_bytes()).get("key") == key


def _scheduler(model: ConditionalModel) -> DDPMScheduler:
    return DDPMScheduler.from_config({**model.scheduler, "clip_sample": False})


def _key(content: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _hash(module: torch.nn.Module) -> str:
    return hash_tensors(dict(module.state_dict()))


def _pairs_key(pairs: Pairs) -> str:
    return hash_tensors({"z_hr": pairs.z_hr, "z_lr": pairs.z_lr})
