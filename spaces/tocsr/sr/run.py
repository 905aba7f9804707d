"""The whole way from a teacher to a one-step model by a recipe: expand, search, finetune, adapt, distill, evaluate.

Every step writes an artefact into the run's folder and is passed over when it stands; one that was stopped goes on from its checkpoint.
Calibrated blocks and training pairs are kept in `$NAS_HOME`, keyed by content.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from diffusers import AutoencoderKL

from nas.errors import InputError, NothingFeasible
from nas.files import MANIFEST, inside, sha256_of, write_whole
from nas.home import nas_home
from nas.job import search
from nas.progress import Progress
from nas.spaces.tocsr.compact import CompactUNet
from nas.spaces.tocsr.expand import expand
from nas.spaces.tocsr.finetune import finetune
from nas.spaces.tocsr.folders import PictureFolder
from nas.spaces.tocsr.resources import own_device
from nas.spaces.tocsr.sr.degradation import degradation
from nas.spaces.tocsr.sr.evaluate import BICUBIC, Pair, System, bicubic_up, evaluate, parts, system_of
from nas.spaces.tocsr.sr.images import FACTOR
from nas.spaces.tocsr.sr.metrics import METRICS, available
from nas.spaces.tocsr.sr.pairs import Pairs
from nas.spaces.tocsr.sr.photographs import Picture
from nas.spaces.tocsr.sr.pipeline import TOCSRPipeline
from nas.spaces.tocsr.sr.recipe import Photographs, Recipe, Searching, adaptation, distillation, expanding, finetuning, training
from nas.spaces.tocsr.sr.steps import adapt, distill, pairs_of
from nas.spaces.tocsr.sr.tables import rendered, summary
from nas.spaces.tocsr.teacher import check_device, companions, load_teacher
from nas.spaces.tocsr.trainer import TrainingSettings

HELD_OUT_PAIRS = 48


@dataclass(frozen=True, slots=True)
class Artefact:
    """What a step left: where, the fingerprint of its content, how long it took this time (0 if it stood already)."""

    step: str
    path: Path
    fingerprint: str
    seconds: float


def run(recipe: Recipe, workdir: Path, progress: Progress, device: str = "cpu") -> list[Artefact]:
    """Does what is left of a recipe, step by step; the artefacts in order.

    Raises:
        InputError: called in one of several processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("a recipe runs in one process; for several GPUs launch its steps (nas tocsr expand, finetune, adapt, distill) one by one")
    check_device(device)
    folder = inside(workdir, recipe.name)
    folder.mkdir(parents=True, exist_ok=True)
    found: list[Artefact] = []

    def step(name: str, work: Callable[[], Path]) -> Path:
        progress.note(f"step {name}")
        begun = time.monotonic()
        path = work()
        manifest = path / MANIFEST if path.is_dir() else path
        found.append(Artefact(name, path, sha256_of(manifest)[:16], round(time.monotonic() - begun, 1)))
        return path

    searching = recipe.search
    if recipe.expand is not None:
        table = recipe.expand
        searching = replace(searching, teacher=str(step("expand", lambda: _expand(table, folder / "expanded", device, progress))))
    backbone = step("search", lambda: _search(searching, folder, device, progress))
    if recipe.finetune is not None:
        (settings, weight), winner = finetuning(recipe.finetune), backbone
        backbone = step("finetune", lambda: _finetune(searching, winner, settings, weight, folder, device, progress))
    adapted, one_step = folder / "adapted", folder / "one-step"
    step("adapt", lambda: adapt_backbone(backbone, searching.teacher, recipe.photographs, recipe.adapt, adapted, progress, device))
    step("distill", lambda: distill_adapted(adapted, recipe.photographs, recipe.distill, one_step, progress, device))
    if recipe.photographs.held_out:
        step("evaluate", lambda: _evaluate(one_step, recipe, folder / "evaluation.json", device, progress))
    else:
        progress.note("no photograph is held out to evaluate on; `nas tocsr evaluate --model` compares on any folder")
    return found


def adapt_backbone(backbone: Path, teacher: str, source: Photographs, table: Mapping[str, Any], to: Path, progress: Progress, device: str = "cpu") -> Path:
    """`steps.adapt` by the entries of a recipe's table; `to` itself."""
    how, settings = adaptation(table)
    network = CompactUNet.from_pretrained(backbone).requires_grad_(True)
    vae, context = companions(teacher, network, progress)
    device = own_device(device)
    pairs, heldout = _pairs(source, vae.to(check_device(device)), progress)
    adapt(network, vae, pairs, to, how=how, settings=settings, work=to.parent, progress=progress, heldout=heldout, context=context, device=device)
    return to


def distill_adapted(adapted: Path, source: Photographs, table: Mapping[str, Any], to: Path, progress: Progress, device: str = "cpu") -> Path:
    """`steps.distill` by the entries of a recipe's table; `to` itself."""
    how = distillation(table)
    settings = training(table, {"steps": 12000, "batch": 8, "rate": 1e-3}, "[distill]")
    pipeline = TOCSRPipeline.from_pretrained(adapted)
    device = own_device(device)
    pairs, heldout = _pairs(source, pipeline.vae.to(check_device(device)), progress)
    distill(pipeline, pairs, to, how=how, settings=settings, work=to.parent, progress=progress, heldout=heldout, device=device)
    return to


def _pairs(source: Photographs, vae: AutoencoderKL, progress: Progress) -> tuple[Pairs, Pairs | None]:
    """Training pairs and a few of held-out photographs, kept in `$NAS_HOME` under the hash of all that decides them."""
    training, held = source.load(progress)
    place = nas_home() / "pairs"
    few = replace(source.data, n=HELD_OUT_PAIRS, seed=source.data.seed + 1)
    return pairs_of(training, vae, source.data, place, progress), pairs_of(held, vae, few, place, progress) if held else None


def _expand(table: Mapping[str, Any], to: Path, device: str, progress: Progress) -> Path:
    """The expanded teacher's folder."""
    asked, options = expanding(table)
    pictures = PictureFolder.of([Path(folder) for folder in asked.data], asked.size, progress, asked.first)
    return Path(expand(Path(asked.teacher), asked.vae_teacher, pictures, options, to, device=device, progress=progress)["path"])


def _search(asked: Searching, folder: Path, device: str, progress: Progress) -> Path:
    options = {
        "teacher": asked.teacher, "data": asked.data, "library": asked.library, "device": None if device == "cpu" else device,
        "calibration_steps": asked.calibration_steps,
    }  # fmt: skip
    given = {name: value for name, value in options.items() if value is not None}
    result = search("tocsr_unet", asked.eps, space_options=given, workdir=folder, name="search", trials=asked.trials, seed=asked.seed, progress=progress)
    winner = result.to_json()["winners"][0]
    if not winner["path"]:
        raise NothingFeasible(f"no candidate is within eps {asked.eps:g}; raise eps or trials in [search]")
    return Path(winner["path"])


def _finetune(asked: Searching, winner: Path, settings: TrainingSettings, weight: float, folder: Path, device: str, progress: Progress) -> Path:
    teacher = load_teacher(asked.teacher, asked.data, device, progress)
    return Path(finetune(winner, teacher, settings, weight, folder, device, progress)["path"])


def _evaluate(model: Path, recipe: Recipe, path: Path, device: str, progress: Progress) -> Path:
    """Bicubic and the model on whole held-out photographs, as JSON; done again whenever it is asked for."""
    pipeline = TOCSRPipeline.from_pretrained(model).to(device)
    pipeline.set_progress_bar_config(disable=True)
    _, held = recipe.photographs.load(progress)
    there, missing = available(list(METRICS))
    systems: dict[str, System] = {BICUBIC: bicubic_up, **{f"{n} steps" if n > 1 else "1 step": system_of(pipeline, n) for n in recipe.evaluate}}
    pairs = [_degraded(name, picture, recipe.photographs.degradation) for name, picture in held.items()]
    rows = evaluate(systems, progress.track(pairs, "held-out photographs"), there)
    content = summary(rows, parts(pipeline), 512, missing, [], [pair.name for pair in pairs])
    write_whole(path, (json.dumps({**content, "row": pipeline.config.row}, indent=1) + "\n").encode())
    progress.note(rendered(content, "text"))
    return path


def _degraded(name: str, picture: Picture, how: str) -> Pair:
    height, width = (side // FACTOR * FACTOR for side in picture.shape[:2])
    whole = np.ascontiguousarray(picture[:height, :width])
    return Pair(name, degradation(how)(whole, np.random.default_rng(list(name.encode()))), whole)
