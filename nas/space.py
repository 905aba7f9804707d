"""What is searched: stages, their choices, and candidates that pick one choice a stage."""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from nas.arguments import options, several, shown, whole
from nas.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from torch import nn

Candidate = tuple[int, ...]
"""One choice index a stage, in stage order; all zeros is the teacher."""

Rule = Callable[[Candidate], bool]
"""True for candidates that are allowed."""

TEACHER = "teacher"


@runtime_checkable
class Recipe(Protocol):
    """How a surrogate block is made from the teacher's block of a stage."""

    @property
    def spec(self) -> dict[str, Any]:
        """All that decides what `build` makes, as JSON values; part of the block's key and of exported architectures."""
        ...

    def build(self, teacher: "nn.Module") -> "nn.Module":
        """A module with the teacher block's signature, starting from its weights where shapes allow, on the same device (meta included).

        Never changes the teacher. Random parts use torch's global generator, which the caller seeds.

        Raises:
            DoesNotFit: the recipe cannot be applied to this block.
        """
        ...


@dataclass(frozen=True, slots=True)
class Choice:
    """One way to fill a stage: the teacher's block (`recipe` None) or a surrogate block made by a recipe."""

    name: str
    recipe: Recipe | None = None


@dataclass(frozen=True, slots=True)
class Stage:
    """A searchable part of the network; choice 0 keeps the teacher's block."""

    name: str
    choices: tuple[Choice, ...]

    def __post_init__(self) -> None:
        names = [choice.name for choice in self.choices]
        if not names or names[0] != TEACHER:
            raise InputError(f"stage '{self.name}' must have '{TEACHER}' as choice 0, got {names[:1]}")
        if len(set(names)) != len(names):
            double = next(name for name in names if names.count(name) > 1)
            raise InputError(f"stage '{self.name}' has two choices named '{double}'; names must differ")

    def index(self, choice: str) -> int:
        """Position of the choice with that name; an unknown name is an error with the nearest one."""
        names = [c.name for c in self.choices]
        if choice not in names:
            raise InputError(f"stage '{self.name}' has no choice '{choice}'{did_you_mean(choice, names)}")
        return names.index(choice)


@dataclass(frozen=True)
class SearchSpace:
    """Stages in order, and rules that forbid combinations."""

    name: str
    stages: tuple[Stage, ...]
    rules: tuple[Rule, ...] = ()

    def __post_init__(self) -> None:
        names = [stage.name for stage in self.stages]
        if not names:
            raise InputError(f"space '{self.name}' has no stages; it needs at least one")
        if len(set(names)) != len(names):
            double = next(name for name in names if names.count(name) > 1)
            raise InputError(f"space '{self.name}' has two stages named '{double}'; names must differ")

    @classmethod
    def of_sizes(cls, name: str, sizes: Iterable[int]) -> "SearchSpace":
        """A space without recipes: stages `s0, s1, ...` with the given numbers of choices.

        >>> SearchSpace.of_sizes("demo", [2, 3]).n_candidates
        6
        """
        stages = []
        for s, size in enumerate(several("sizes", sizes, "[2, 3]")):
            if whole(f"space '{name}': the size of stage s{s}", size) < 1:
                raise InputError(f"space '{name}': stage s{s} must have at least 1 choice, got {size}")
            surrogates = tuple(Choice(f"c{k}") for k in range(1, size))
            stages.append(Stage(f"s{s}", (Choice(TEACHER), *surrogates)))
        return cls(name, tuple(stages))

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Number of choices of each stage, `(S,)`."""
        return tuple(len(stage.choices) for stage in self.stages)

    @property
    def n_candidates(self) -> int:
        """Number of combinations, rules not applied."""
        return math.prod(self.sizes)

    @property
    def teacher(self) -> Candidate:
        """The candidate that replaces nothing."""
        return (0,) * len(self.stages)

    def allows(self, candidate: Candidate) -> bool:
        """Whether every rule permits the candidate."""
        return all(rule(candidate) for rule in self.rules)

    def check(self, candidate: Iterable[int]) -> Candidate:
        """The candidate as a tuple of ints, or an error that names the stage that is out of range."""
        try:
            candidate = tuple(int(k) for k in candidate)
        except (TypeError, ValueError, OverflowError):
            raise InputError(f"a candidate of '{self.name}' is a tuple of {len(self.stages)} choices, one a stage, got {shown(candidate)}") from None
        if len(candidate) != len(self.stages):
            raise InputError(f"a candidate of '{self.name}' has {len(self.stages)} stages, got {len(candidate)}")
        for stage, k in zip(self.stages, candidate, strict=True):
            if not 0 <= k < len(stage.choices):
                raise InputError(f"stage '{stage.name}' has choices 0..{len(stage.choices) - 1}, got {k}")
        return candidate

    def encode(self, names: Mapping[str, str]) -> Candidate:
        """The candidate with the named choices; unnamed stages keep the teacher's block."""
        known = [stage.name for stage in self.stages]
        for name in options("a candidate's names", names, written=False):
            if name not in known:
                raise InputError(f"space '{self.name}' has no stage '{name}'{did_you_mean(name, known)}")
        return tuple(stage.index(names.get(stage.name, TEACHER)) for stage in self.stages)

    def decode(self, candidate: Candidate) -> dict[str, str]:
        """Stage name -> choice name."""
        candidate = self.check(candidate)
        return {stage.name: stage.choices[k].name for stage, k in zip(self.stages, candidate, strict=True)}

    def parse(self, text: str) -> Candidate:
        """The candidate that `"stage=choice,stage=choice"` describes; `"teacher"` is the teacher.

        Names of choices may hold commas and equals signs: a comma separates where a stage's name and `=` follow, or the stage has a choice called as what
        stands before it.
        """
        if not isinstance(text, str):
            raise InputError(f"a candidate must be a text such as 'stage=choice' or '{TEACHER}', got {shown(text)}")
        if text.strip() == TEACHER:
            return self.teacher
        names: dict[str, str] = {}
        for pair in self._pairs(text):
            stage, equals, choice = pair.partition("=")
            if not equals or not stage.strip() or not choice.strip():
                raise InputError(f"candidate '{text}': expected 'stage=choice', got '{pair}'")
            if stage.strip() in names:
                raise InputError(f"candidate '{text}' names stage '{stage.strip()}' twice")
            names[stage.strip()] = choice.strip()
        if not names:
            raise InputError(f"candidate '{text}' names no stage; give 'stage=choice,stage=choice', or '{TEACHER}'")
        return self.encode(names)

    def _pairs(self, text: str) -> list[str]:
        choices = {stage.name: {choice.name for choice in stage.choices} for stage in self.stages}
        pairs: list[str] = []
        for pair in re.split(rf",(?=\s*(?:{'|'.join(map(re.escape, choices))})\s*=)", text):
            stage, _, choice = (part.strip() for part in pair.partition("="))
            first = choice.partition(",")[0].strip()
            whole = choice in choices.get(stage, ()) or (stage in choices and first not in choices[stage])
            pairs += [pair] if whole else pair.split(",")
        return [pair.strip() for pair in pairs if pair.strip()]

    def enumerate(self) -> np.ndarray:
        """All combinations, `(n_candidates, S)` of the smallest unsigned type, last stage fastest."""
        dtype = np.uint8 if max(self.sizes) <= 256 else np.uint16
        grid = np.indices(self.sizes, dtype=dtype)
        return grid.reshape(len(self.sizes), -1).T
