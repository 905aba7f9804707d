"""The two trainings of Section 3.3 of [TOC-SR]: conditional diffusion (Algorithm 3) and one-step distillation (Algorithm 4).

Symbols as in `conditional`; besides, z_T' the multi-step teacher's final latent and z_S the student's (Eq. 22):

    Eq. 21   E || eps - eps_theta([x_t, z_lr], t) ||^2
    Eq. 23   E || z_S - z_T' ||^2
    HR term  E || z_S - z_hr ||^2           (ours, optional)
    L1 term  E | D(z_S) - x_hr |            (ours, optional: image space, through the decoder D)
"""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from diffusers import AutoencoderKL
from torch import Generator, Tensor, nn

from nas.checkpoint import load_checkpoint, save_checkpoint
from nas.errors import InputError
from nas.progress import Progress
from nas.spaces.tocsr.sr.conditional import ConditionalModel
from nas.spaces.tocsr.sr.pairs import Pairs, decode
from nas.spaces.tocsr.trainer import Draw, Loss, seeded

TARGET_BATCH = 32
SAVE_S = 60.0  # seconds between two savings

Weighting = Literal["eps", "v"]

Perceptual = Callable[[Tensor, Tensor], Tensor]
"""Distance of two images `(B, 3, H, W)` in [-1, 1], such as LPIPS."""


@dataclass(frozen=True, slots=True)
class Terms:
    """Weights of the one-step student's loss; the defaults are pure Eq. (23)."""

    teacher: float = 1.0
    hr: float = 0.0
    image_l1: float = 0.0
    lpips: float = 0.0

    def __post_init__(self) -> None:
        values = (self.teacher, self.hr, self.image_l1, self.lpips)
        if min(values) < 0 or max(values) <= 0:
            raise InputError(f"the terms of the student's loss must be 0 or more, one of them more, got {self}")

    @property
    def name(self) -> str:
        """What the row of a table is called: never pure Eq. 23 when it is not."""
        parts = [("Eq. 23", self.teacher), ("HR term", self.hr), ("image L1", self.image_l1), ("LPIPS", self.lpips)]
        return " + ".join(name for name, weight in parts if weight)


Latents = tuple[Tensor, Tensor]
"""z_hr, z_lr `(B, C, h, w)`."""


def draw_pairs(pairs: Pairs) -> Draw:
    """Draws latents of pairs, each as often as any other."""

    def draw(random: Generator, n: int) -> Latents:
        rows = torch.randint(len(pairs), (n,), generator=random)
        return pairs.z_hr[rows].float(), pairs.z_lr[rows].float()

    return draw


def diffusion_loss(model: ConditionalModel, weighting: Weighting = "eps") -> Loss:
    """Eq. (21); with weighting "v" divided by abar_t, the error of v, which does not neglect the noisiest steps."""

    def loss(network: nn.Module, batch: Latents, random: Generator) -> Tensor:
        z_hr, z_lr = batch
        t = torch.randint(len(model.abar), (len(z_hr),), generator=random)
        noise = torch.randn(z_hr.shape, generator=random).to(z_hr)
        found = network(model.diffuse(model.diffused.x0(z_hr, z_lr), noise, t), z_lr, t.to(z_hr.device))
        error = (found - noise).square().mean((1, 2, 3))
        weighted: Tensor = error / model.abar[t].to(error) if weighting == "v" else error
        return weighted.mean()

    return loss


@dataclass(frozen=True, slots=True)
class Targets:
    """The teacher's final latents `(n, C, h, w)` float16 of the first n pairs, and the seed of the noise it began with."""

    seed: int
    latents: Tensor

    def noise(self, rows: Tensor) -> Tensor:
        """The noise `(B, C, h, w)` that the teacher began with at these pairs."""
        return noise_of(self.seed, rows, self.latents.shape[1:])


def noise_of(seed: int, rows: Tensor, shape: torch.Size) -> Tensor:
    """Standard normal noise `(B, *shape)`, each row a function of the seed and its number."""
    return torch.stack([torch.randn(shape, generator=seeded(seed, row)) for row in rows.tolist()]) if len(rows) else torch.zeros(0, *shape)


@torch.no_grad()
def teacher_targets(teacher: ConditionalModel, pairs: Pairs, n: int, steps: int, path: Path, *, key: str, progress: Progress, seed: int = 1) -> Targets:
    """What the teacher's DDIM of `steps` makes of the first `n` pairs; kept in `path` as it goes, so that a killed call goes on.

    Raises:
        InputError: the file belongs to another teacher, data or number of steps.
    """
    of = {"key": key, "steps": steps, "seed": seed}
    done: list[Tensor] = []
    if path.exists():
        state = load_checkpoint(path)
        if state.get("of") != of:
            raise InputError(f"{path} holds the targets of another teacher; remove it, or give another --work")
        done = [state["latents"]]
    saved = time.monotonic()
    have = len(done[0]) if done else 0
    for start in progress.track(range(have, min(n, len(pairs)), TARGET_BATCH), "teacher's latents"):
        rows = torch.arange(start, min(start + TARGET_BATCH, n, len(pairs)))
        z_lr = pairs.z_lr[rows].float().to(teacher.unet.device)
        done.append(teacher.sample(noise_of(seed, rows, z_lr.shape[1:]).to(z_lr), z_lr, steps).half().cpu())
        if time.monotonic() - saved > SAVE_S:
            done, saved = [torch.cat(done)], time.monotonic()
            save_checkpoint(path, {"of": of, "latents": done[0]})
    latents = torch.cat(done)[:n]
    save_checkpoint(path, {"of": of, "latents": latents})
    return Targets(seed, latents)


def student_of(teacher: ConditionalModel) -> ConditionalModel:
    """The student that starts as its teacher."""
    return copy.deepcopy(teacher)


Lesson = dict[str, Tensor]
"""`noise`, `z_lr`, `z_hr (B, C, h, w)`, `hr (B, 3, H, W)` in [-1, 1], and `taught (b, C, h, w)`: the teacher's latents of the first b."""


def draw_lessons(pairs: Pairs, targets: Targets, terms: Terms) -> Draw:
    """Draws pairs that the teacher has sampled, with its noise; if other terms than Eq. (23) count too, only half are such, the rest any pairs and noise."""
    alone = not (terms.hr or terms.image_l1 or terms.lpips)

    def draw(random: Generator, n: int) -> Lesson:
        taught = n if alone else max(1, n // 2) if terms.teacher else 0
        rows = torch.randint(len(targets.latents), (taught,), generator=random)
        others = torch.randint(len(pairs), (n - taught,), generator=random)
        fresh = torch.randn(len(others), *pairs.z_lr.shape[1:], generator=random)
        everything = torch.cat([rows, others])
        return {
            "noise": torch.cat([targets.noise(rows), fresh]),
            "z_lr": pairs.z_lr[everything].float(),
            "z_hr": pairs.z_hr[everything].float(),
            "hr": pairs.hr[everything].float() / 127.5 - 1,
            "taught": targets.latents[rows].float(),
        }

    return draw


def distillation_loss(student: ConditionalModel, terms: Terms, vae: AutoencoderKL | None = None, perceptual: Perceptual | None = None) -> Loss:
    """Eq. (23) and the optional terms; errors of latents in units of the residual's scale, so that weights mean the same in both parametrisations.

    Raises:
        InputError: a term needs a decoder or a perceptual distance that is not given.
    """
    if (terms.image_l1 or terms.lpips) and vae is None:
        raise InputError("terms in image space need the decoder")
    if terms.lpips and perceptual is None:
        raise InputError("the LPIPS term needs the package lpips; pip install lpips, or leave the term out")
    unit = student.diffused.scale**2 if student.diffused.target == "residual" else 1.0

    def loss(network: nn.Module, lesson: Lesson, random: Generator) -> Tensor:
        del random
        found = student.one_step(lesson["noise"], lesson["z_lr"], network)
        total = torch.zeros((), device=found.device)
        if len(lesson["taught"]):
            total = total + terms.teacher / unit * (found[: len(lesson["taught"])] - lesson["taught"]).square().mean()
        if terms.hr:
            total = total + terms.hr / unit * (found - lesson["z_hr"]).square().mean()
        if vae is not None and (terms.image_l1 or terms.lpips):
            image = decode(vae, found)
            total = total + terms.image_l1 * (image - lesson["hr"]).abs().mean()
            if perceptual is not None and terms.lpips:
                total = total + terms.lpips * perceptual(image, lesson["hr"]).mean()
        return total

    return loss
