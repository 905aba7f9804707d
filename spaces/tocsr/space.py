"""`--space tocsr_unet`: the nine stages of a latent-diffusion U-Net, the reference space of TOC-SR."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from nas.blocks.calibration import CalibrationSettings
from nas.blocks.saved import save_model
from nas.data import Samples
from nas.errors import InputError
from nas.evaluators.divergence import Settings
from nas.evaluators.numerics import Numerics
from nas.graph import StageGraph
from nas.space import TEACHER, Choice
from nas.spaces.network import NetworkSpace
from nas.spaces.tocsr.compact import CompactUNet, architecture_diff
from nas.spaces.tocsr.library import LIBRARY_VERSION, bk_sdm_designs
from nas.spaces.tocsr.library import library as stages_of
from nas.spaces.tocsr.recipes import LEGEND
from nas.spaces.tocsr.stages import Stage as UNetStage
from nas.spaces.tocsr.teacher import EMBEDDED, load_teacher
from nas.spaces.tocsr.unet import unet_graph

LOADING = """from nas.spaces.tocsr import CompactUNet

unet = CompactUNet.from_pretrained("FOLDER")  # a diffusers UNet2DConditionModel, called like one
# with a block of your own in it: nas.blocks.saved.load_graph("FOLDER", nas.spaces.tocsr.unet.unet_graph(TEACHER))"""


def tocsr_unet(
    teacher: str = EMBEDDED,
    library: str = "default",
    data: str | None = None,
    device: str = "cpu",
    numerics: str = "fp32",
    calibration_steps: int | None = None,
) -> NetworkSpace:
    """The space of a teacher: "embedded", a diffusers folder or a hub id (these need a folder of pictures as `data`).

    Candidates are measured with the given `numerics`, such as "bf16,channels_last"; see `Numerics`. Blocks are fitted in at most `calibration_steps`,
    by default those of `CalibrationSettings`.

    Divergence is L_gen, Eq. (11) of [TOC-SR], on the noise prediction; the task loss is the denoising loss, Eq. (16).
    """
    evaluation, calibration = Settings(numerics=Numerics.parse(numerics)), _calibration(calibration_steps)
    found = load_teacher(teacher, data, device)
    unet = found.unet

    def save(chosen: Mapping[str, tuple[Choice, nn.Module]], folder: Path) -> None:
        if not all(isinstance(block, UNetStage) for _, block in chosen.values()):  # blocks of one's own make no CompactUNet
            save_model(graph, chosen, folder)
            return
        recipes = {stage: (choice.recipe, block) for stage, (choice, block) in chosen.items()}
        model = CompactUNet.assemble(unet, recipes)
        model.save_pretrained(folder)
        (folder / "architecture.json").write_text(json.dumps(_architecture(graph, chosen), indent=1), encoding="utf-8")
        (folder / "architecture.txt").write_text(architecture_diff(model) + "\n", encoding="utf-8")

    graph = unet_graph(unet)
    stages = stages_of(graph, library)
    return NetworkSpace(
        "tocsr_unet", graph, stages, found.data, loss=denoising_loss, save=save, calibration=calibration, evaluation=evaluation, notes=found.notes,
        legend=LEGEND, loading=LOADING, references=bk_sdm_designs(stages), levels="timestep",
    )  # fmt: skip


def _calibration(steps: int | None) -> CalibrationSettings:
    usual = CalibrationSettings()
    if steps is None:
        return usual
    if steps < 1:
        raise InputError(f"calibration_steps must be at least 1, got {steps}")
    return replace(usual, max_steps=steps, check_every=min(steps, usual.check_every))


def _architecture(graph: StageGraph, chosen: Mapping[str, tuple[Choice, nn.Module]]) -> dict[str, Any]:
    """Stage -> choice, recipe and parameters beside the teacher's."""
    stages = {}
    for step in graph.steps:
        choice, block = chosen.get(step.name, (Choice(TEACHER), step.module))
        before, after = (sum(p.numel() for p in module.parameters()) for module in (step.module, block))
        stages[step.name] = {"choice": choice.name, "recipe": choice.recipe.spec if choice.recipe else None, "params": after, "teacher_params": before}
    return {"library_version": LIBRARY_VERSION, "stages": stages}


def denoising_loss(output: Tensor, samples: Samples) -> float:
    """Mean squared error between predicted and true noise (Eq. 16 of [TOC-SR])."""
    if samples.target is None:
        raise ValueError("denoising samples carry their noise as target")
    return float((output - samples.target.to(output.device)).square().mean())
