"""How long-running work tells what it does; the CLI draws it, libraries and tests may ignore it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, TypeVar, runtime_checkable

T = TypeVar("T")


class Progress(Protocol):
    """A place to report to."""

    def note(self, text: str) -> None:
        """One line worth keeping."""
        ...

    def track(self, items: Sequence[T], what: str) -> Iterator[T]:
        """The items themselves, while a bar with their count and an ETA is shown."""
        ...


@runtime_checkable
class TakesScalars(Protocol):
    """A place to report to that wants the numbers of trainings too."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Named numbers at a step."""
        ...


def tell_scalars(progress: object, what: str, values: Mapping[str, float | None], step: int) -> None:
    """Tells the numbers that are known, each as `WHAT/NAME`, to whoever wants them."""
    if isinstance(progress, TakesScalars):
        progress.scalars({f"{what}/{name}": value for name, value in values.items() if value is not None}, step)


class Quiet:
    """Reports nothing."""

    def note(self, text: str) -> None:
        del text

    def track(self, items: Sequence[T], what: str) -> Iterator[T]:
        del what
        yield from items


class Notes:
    """Passes lines on, draws no bars: for work inside of work that has one."""

    def __init__(self, to: Progress) -> None:
        self._to = to

    def note(self, text: str) -> None:
        """One line worth keeping."""
        self._to.note(text)

    def track(self, items: Sequence[T], what: str) -> Iterator[T]:
        """The items alone."""
        del what
        yield from items
