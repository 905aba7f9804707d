"""What a recipe (a TOML file) says of the whole way from a teacher to a one-step model; `nas.spaces.tocsr.sr.run` goes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from nas.arguments import whole
from nas.errors import InputError, did_you_mean
from nas.files import check_form, read_toml
from nas.progress import Progress
from nas.spaces.tocsr.expand import FLUX, ExpansionOptions
from nas.spaces.tocsr.expansion import Variant
from nas.spaces.tocsr.sr.photographs import Picture, hold_out, photographs_in
from nas.spaces.tocsr.sr.steps import Adaptation, Data, Distillation
from nas.spaces.tocsr.sr.train import Terms
from nas.spaces.tocsr.teacher import EMBEDDED
from nas.spaces.tocsr.trainer import TrainingSettings

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

    def __post_init__(self) -> None:
        whole("longest", self.longest, 1)
        Data(self.crops, self.size, self.degradation)

    def load(self, progress: Progress) -> tuple[Mapping[str, Picture], Mapping[str, Picture]]:
        """Training and held-out photographs, each read when it is asked for."""
        return hold_out(photographs_in(Path(self.folder).expanduser(), self.longest, progress), self.held_out)

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
        _only(content, known, f"recipe {path}")
        check_form(content, {"name?": str, **{f"{key}?": dict for key in known[1:]}}, f"recipe {path}: entry")
        tables = {key: content.get(key, {}) for key in known[1:]}
        check_form(tables["evaluate"], {"steps?": [int]}, f"recipe {path}: [evaluate]")
        _only(tables["evaluate"], ("steps",), f"recipe {path}: [evaluate]")
        if "expand" in content and "teacher" in tables["search"]:
            raise InputError(f"recipe {path}: with [expand] the search's teacher is the expanded one; leave out teacher in [search]")
        if "expand" in content:
            expanding(tables["expand"])
        if "finetune" in content:
            finetuning(tables["finetune"])
        adaptation(tables["adapt"])
        distillation(tables["distill"])
        training(tables["distill"], {"steps": 1}, "[distill]")
        for n in tables["evaluate"].get("steps", ()):
            whole(f"recipe {path}: [evaluate]: each of steps", n, 1)
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


def _only(table: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in table:
        if key not in known:
            raise InputError(f"{where} has no entry '{key}'{did_you_mean(key, known)}")


def made(kind: Callable[..., T], values: Mapping[str, Any], where: str) -> T:
    """A dataclass from a table of a file.

    Raises:
        InputError: names a key that is unknown, missing, or has a value of another type than its field.
    """
    types = get_type_hints(kind)
    _only(values, list(types), where)
    for key, value in values.items():
        if not _fits(value, types[key]):
            raise InputError(f"{where}: '{key}' must be {_words(types[key])}, got {value!r:.60}")
    needed = [field.name for field in fields(kind) if field.default is MISSING and field.default_factory is MISSING]  # type: ignore[arg-type]
    if absent := [name for name in needed if name not in values]:
        raise InputError(f"{where} must have '{absent[0]}'")
    return kind(**values)


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
    return names.get(kind) or " or ".join(_words(one) if one in names or get_origin(one) else repr(one) for one in get_args(kind)) or kind.__name__


TRAINING = ("steps", "batch", "accumulate", "rate", "warmup", "decay", "precision", "seed")
"""Entries of a step's table that say how it is trained."""


def training(table: Mapping[str, Any], defaults: Mapping[str, Any], where: str) -> TrainingSettings:
    """The settings in a step's table."""
    return made(TrainingSettings, {"warmup": 100, **defaults, **{key: value for key, value in table.items() if key in TRAINING}}, where)


def finetuning(table: Mapping[str, Any]) -> tuple[TrainingSettings, float]:
    """How the winner is trained, and the weight of distillation from the teacher."""
    _only(table, (*TRAINING, "distill"), "[finetune]")
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


def expanding(table: Mapping[str, Any]) -> tuple[Expanding, ExpansionOptions]:
    """What is expanded and how, by a recipe's table; `steps` are the autoencoder's, `joint_steps` those of both together."""
    data = table.get("data", [])
    own = {**_without(table, (*TRAINING, "joint_steps")), "data": (data,) if isinstance(data, str) else _listed(data)}
    asked = made(Expanding, own, "[expand]")
    first = training(table, {"steps": 20_000, "batch": 4, "accumulate": 4, "rate": 1e-5}, "[expand]")
    second = training({**table, "steps": table.get("joint_steps", first.steps)}, {"batch": 4, "accumulate": 4, "rate": 1e-5}, "[expand]")
    return asked, ExpansionOptions(first, second, asked.channels, asked.variant, asked.latent_weight, asked.heldout)


def _listed(value: object) -> object:
    """A list as dataclasses keep it; anything else as it is, to be refused."""
    return tuple(value) if isinstance(value, list) else value


def _without(table: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in table.items() if key not in names}
