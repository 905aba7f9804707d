"""The whole way from a teacher to a one-step model by a recipe (a TOML file): expand, search, finetune, adapt, distill, evaluate.

Every step writes an artefact into the run's folder and is passed over when it stands; one that was stopped goes on from its checkpoint.
Calibrated blocks and training pairs are kept in `$NAS_HOME`, keyed by content.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
from diffusers import AutoencoderKL

from nas.errors import InputError, NothingFeasible, did_you_mean
from nas.files import MANIFEST, check_form, inside, read_toml, sha256_of, write_whole
from nas.home import nas_home
from nas.job import search
from nas.progress import Progress
from nas.spaces.tocsr.compact import CompactUNet
from nas.spaces.tocsr.expand import FLUX, ExpansionOptions, expand
from nas.spaces.tocsr.expansion import Variant
from nas.spaces.tocsr.finetune import finetune
from nas.spaces.tocsr.folders import PictureFolder
from nas.spaces.tocsr.sr.degradation import degradation
from nas.spaces.tocsr.sr.evaluate import BICUBIC, Pair, System, bicubic_up, evaluate, parts, system_of
from nas.spaces.tocsr.sr.images import FACTOR
from nas.spaces.tocsr.sr.metrics import METRICS, available
from nas.spaces.tocsr.sr.pairs import Pairs, Picture, hold_out, read_photographs
from nas.spaces.tocsr.sr.pipeline import TOCSRPipeline
from nas.spaces.tocsr.sr.steps import Adaptation, Data, Distillation, adapt, distill, pairs_of
from nas.spaces.tocsr.sr.tables import rendered, summary
from nas.spaces.tocsr.sr.train import Terms
from nas.spaces.tocsr.teacher import EMBEDDED, check_device, companions, load_teacher
from nas.spaces.tocsr.trainer import TrainingSettings, own_device

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Photographs:
    """What super-resolution is trained and judged on.

    Attributes:
        folder: of pictures.
        held_out: names of those that are never trained on.
        longest: pictures are halved until no side is longer.
        crops: how many training pairs.
        size: of a crop in pixels.
        degradation: "bicubic" or "realesrgan".
    """

    folder: str
    held_out: tuple[str, ...]
    longest: int = 1200
    crops: int = 8000
    size: int = 96
    degradation: str = "bicubic"

    def load(self, progress: Progress) -> tuple[dict[str, Picture], dict[str, Picture]]:
        """Training and held-out photographs."""
        return hold_out(read_photographs(Path(self.folder).expanduser(), self.longest, progress), self.held_out)

    @property
    def data(self) -> Data:
        """As pairs want it."""
        return Data(self.crops, self.size, self.degradation)


@dataclass(frozen=True, slots=True)
class Expanding:
    """Latent expansion before the search: what `nas tocsr expand` is told, but how it is trained."""

    teacher: str
    data: tuple[str, ...]
    vae_teacher: str = FLUX
    channels: int = 16
    variant: Variant = "v2"
    size: int = 256
    first: int | None = None
    heldout: int = 16
    latent_weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.data:
            raise InputError("[expand]: data must name at least one folder of pictures, got none")


@dataclass(frozen=True, slots=True)
class Searching:
    """The search: of `nas search`'s options those that a recipe needs, and the longest calibration of a block."""

    eps: float = 0.005
    teacher: str = EMBEDDED
    data: str | None = None
    library: str | None = None
    calibration_steps: int | None = None
    trials: int = 60
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Recipe:
    """A parsed recipe; None leaves a step out."""

    name: str
    expand: Mapping[str, Any] | None
    search: Searching
    photographs: Photographs
    finetune: Mapping[str, Any] | None
    adapt: Mapping[str, Any]
    distill: Mapping[str, Any]
    evaluate: tuple[int, ...]

    @classmethod
    def read(cls, path: Path) -> Recipe:
        """The recipe in a TOML file.

        Raises:
            InputError: an unknown table or key, or one that is missing.
        """
        return cls.of(read_toml(path), path)

    @classmethod
    def of(cls, content: Mapping[str, Any], path: Path) -> Recipe:
        """The recipe that the file holds; see `read`."""
        known = ("name", "expand", "search", "photographs", "finetune", "adapt", "distill", "evaluate")
        for key in content:
            if key not in known:
                raise InputError(f"recipe {path}: unknown entry '{key}'{did_you_mean(key, known)}")
        check_form(content, {"name?": str, **{f"{key}?": dict for key in known[1:]}}, f"recipe {path}: entry")
        tables = {key: content.get(key, {}) for key in known[1:]}
        check_form(tables["evaluate"], {"steps?": [int]}, f"recipe {path}: [evaluate]")
        if "expand" in content and "teacher" in tables["search"]:
            raise InputError(f"recipe {path}: with [expand] the search's teacher is the expanded one; leave out teacher in [search]")
        if "expand" in content:
            expanding(tables["expand"])
        if "finetune" in content:
            finetuning(tables["finetune"])
        adaptation(tables["adapt"])
        distillation(tables["distill"])
        photographs = {**tables["photographs"], "held_out": _listed(tables["photographs"].get("held_out", []))}
        return cls(
            content.get("name", path.stem),
            tables["expand"] if "expand" in content else None,
            made(Searching, tables["search"], f"recipe {path}: [search]"),
            made(Photographs, photographs, f"recipe {path}: [photographs]"),
            tables["finetune"] if "finetune" in content else None,
            tables["adapt"],
            tables["distill"],
            tuple(tables["evaluate"].get("steps", (1,))),
        )


def made(kind: Callable[..., T], values: Mapping[str, Any], where: str) -> T:
    """A dataclass from a table of a file.

    Raises:
        InputError: names a key that is unknown, missing, or has a value of another type than its field.
    """
    types = get_type_hints(kind)
    for key, value in values.items():
        if key not in types:
            raise InputError(f"{where} has no entry '{key}'{did_you_mean(key, types)}")
        if not _fits(value, types[key]):
            raise InputError(f"{where}: '{key}' must be {_words(types[key])}, got {value!r:.60}")
    try:
        return kind(**values)
    except TypeError as error:
        raise InputError(f"{where}: {str(error).partition('() ')[2] or error}") from error


def _fits(value: object, kind: Any) -> bool:
    """Whether a value read from a file is of the type that a field is annotated with."""
    arguments = get_args(kind)
    if get_origin(kind) in (Union, UnionType):
        return any(_fits(value, one) for one in arguments)
    if get_origin(kind) is Literal:
        return value in arguments
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_fits(item, arguments[0]) for item in value)
    if isinstance(value, int | float) and not (isinstance(value, bool) or -LARGEST < value < LARGEST):  # NaN and infinities too
        return False
    return isinstance(value, int | float if kind is float else kind) and isinstance(value, bool) == (kind is bool)


LARGEST = 1 << 60


def _words(kind: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "a text", type(None): "nothing"}
    if get_origin(kind) is tuple:
        return "a list of texts"
    return names.get(kind) or " or ".join(_words(one) if one in names else repr(one) for one in get_args(kind)) or kind.__name__


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


HELD_OUT_PAIRS = 48

TRAINING = ("steps", "batch", "accumulate", "rate", "warmup", "decay", "precision", "seed")
"""Entries of a step's table that say how it is trained."""


def training(table: Mapping[str, Any], defaults: Mapping[str, Any], where: str) -> TrainingSettings:
    """The settings in a step's table."""
    return made(TrainingSettings, {"warmup": 100, **defaults, **{key: value for key, value in table.items() if key in TRAINING}}, where)


def finetuning(table: Mapping[str, Any]) -> tuple[TrainingSettings, float]:
    """How the winner is trained, and the weight of distillation from the teacher."""
    weight = table.get("distill", 0.0)
    if not _fits(weight, float) or not 0 <= weight <= 1:
        raise InputError(f"[finetune]: 'distill' must be a number from 0 to 1, got {weight!r:.60}")
    return training(table, {"steps": 2000, "batch": 64, "rate": 5e-4}, "[finetune]"), float(weight)


def adaptation(table: Mapping[str, Any]) -> tuple[Adaptation, TrainingSettings]:
    """How the backbone becomes conditional, by a recipe's table."""
    return made(Adaptation, _without(table, TRAINING), "[adapt]"), training(table, {"steps": 8000, "batch": 8, "rate": 1e-3}, "[adapt]")


def distillation(table: Mapping[str, Any]) -> Distillation:
    """The terms and targets in a table: `teacher`, `hr`, `image_l1`, `lpips` are weights; `targets` and `teacher_steps` say what the teacher samples."""
    rest = _without(table, TRAINING)
    rows = {name: rest.pop(name) for name in ("targets",) if name in rest} | ({"steps": rest.pop("teacher_steps")} if "teacher_steps" in rest else {})
    return made(Distillation, {"terms": made(Terms, rest, "[distill]"), **rows}, "[distill]")


def _pairs(source: Photographs, vae: AutoencoderKL, progress: Progress) -> tuple[Pairs, Pairs | None]:
    """Training pairs and a few of held-out photographs, kept in `$NAS_HOME` under the hash of all that decides them."""
    training, held = source.load(progress)
    place = nas_home() / "pairs"
    few = replace(source.data, n=HELD_OUT_PAIRS, seed=source.data.seed + 1)
    return pairs_of(training, vae, source.data, place, progress), pairs_of(held, vae, few, place, progress) if held else None


def expanding(table: Mapping[str, Any]) -> tuple[Expanding, ExpansionOptions]:
    """What is expanded and how, by a recipe's table; `steps` are the autoencoder's, `joint_steps` those of both together."""
    data = table.get("data", [])
    own = {**_without(table, (*TRAINING, "joint_steps")), "data": (data,) if isinstance(data, str) else _listed(data)}
    asked = made(Expanding, own, "[expand]")
    first = training(table, {"steps": 20_000, "batch": 4, "accumulate": 4, "rate": 1e-5}, "[expand]")
    second = training({**table, "steps": table.get("joint_steps", first.steps)}, {"batch": 4, "accumulate": 4, "rate": 1e-5}, "[expand]")
    return asked, ExpansionOptions(first, second, asked.channels, asked.variant, asked.latent_weight, asked.heldout)


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


def _listed(value: object) -> object:
    """A list as dataclasses keep it; anything else as it is, to be refused."""
    return tuple(value) if isinstance(value, list) else value


def _without(table: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in table.items() if key not in names}
