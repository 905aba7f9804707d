"""What recipes stand on: a name, a spec made from the fields, a place in the registry."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from nas.errors import InputError, did_you_mean
from nas.fingerprint import code_identity

if TYPE_CHECKING:
    from torch import Tensor, nn


class BlockRecipe:
    """Base of recipes that are dataclasses: their fields, as JSON values, are the spec.

    Write `@block("narrow")` above `@dataclass(frozen=True)` above `class Narrow(BlockRecipe)`, and a `build`.

    Attributes:
        recipe: the registered name.
        does: what the block is, for `nas blocks`.
        fits: which blocks it can be made from, for `nas blocks`.
        optional: whether a library leaves it out where the block it makes breaks the contract, instead of stopping with an error.
    """

    recipe: ClassVar[str] = ""
    does: ClassVar[str] = ""
    fits: ClassVar[str] = ""
    optional: ClassVar[bool] = False

    @property
    def spec(self) -> dict[str, Any]:
        """The registered name and every field; of recipes outside the toolkit also a hash of their code."""
        own: dict[str, Any] = {"recipe": self.recipe, **self.options}
        return own if type(self).__module__.startswith("nas.") else {**own, "code": code_identity(type(self)).rpartition("#")[2]}

    @property
    def options(self) -> dict[str, Any]:
        """Every field by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]  # subclasses are dataclasses

    @property
    def name(self) -> str:
        """The choice's name: the registered name and the fields, such as `low_rank-0.25`."""
        return "-".join([self.recipe, *(str(value) for value in self.options.values() if value is not None)])

    def build(self, teacher: "nn.Module") -> "nn.Module":
        """See `nas.space.Recipe`."""
        raise NotImplementedError

    def check(self, reads: "Sequence[Tensor]", writes: "Sequence[Tensor]") -> None:
        """Raises DoesNotFit where what the stage reads and writes rules the recipe out; on the meta device."""


R = TypeVar("R", bound=type[BlockRecipe])


def block(name: str, *, fits: str = "", does: str = "") -> Callable[[R], R]:
    """Registers a recipe class under a name, for `nas blocks`, for libraries and for loading exported models."""
    from nas.names import BLOCKS

    def register(kind: R) -> R:
        kind.recipe = name
        kind.fits = fits or kind.fits
        kind.does = does or kind.does or (kind.__doc__ or "").strip().partition("\n")[0]
        BLOCKS.add(name, kind)
        return kind

    return register


def recipe_of(spec: Mapping[str, Any]) -> BlockRecipe:
    """The recipe that wrote the spec.

    Raises:
        InputError: its name is not registered, its fields are others, or its code has changed.
    """
    from nas.names import BLOCKS

    options = {key: value for key, value in spec.items() if key not in ("recipe", "code")}
    name = spec.get("recipe", "")
    if name not in BLOCKS.names():
        raise InputError(f"recipe '{name}' is not registered{did_you_mean(name, BLOCKS.names())}; import the module that defines it first")
    kind = BLOCKS.get(name)
    try:
        made = kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in options.items()})
    except TypeError as error:
        raise InputError(f"recipe '{name}' cannot be made from {options}: {error}") from error
    if "code" in spec and made.spec.get("code") != spec["code"]:
        raise InputError(f"recipe '{name}' is not the one that made this model, its code has changed; load it with the code of that time")
    return made
