"""How long-running work tells what it does; the CLI draws it, libraries and tests may ignore it."""

from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar

T = TypeVar("T")


class Progress(Protocol):
    """A place to report to."""

    def note(self, text: str) -> None:
        """One line worth keeping."""
        ...

    def track(self, items: Sequence[T], what: str) -> Iterator[T]:
        """The items themselves, while a bar with their count and an ETA is shown."""
        ...


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
