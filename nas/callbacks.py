"""What follows a search without changing it: the report on disk, dashboards, loggers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from nas.trial import Trial

if TYPE_CHECKING:
    from nas.study import Study


class Callback(Protocol):
    """Told what happens in a search. Must not write the record; an exception ends the search, so a logger that may fail catches its own."""

    def start(self, study: "Study") -> None:
        """The space is ready; the study may hold trials of earlier sessions."""
        ...

    def trial(self, study: "Study", trial: Trial) -> None:
        """A trial was added to the record."""
        ...

    def end(self, result: Mapping[str, Any] | None) -> None:
        """The search is over: its JSON, or None when it was interrupted or failed."""
        ...


@contextmanager
def closing(callbacks: Sequence[Callback], first: Callable[[], object]) -> Iterator[None]:
    """If the block does not end well, does `first` and tells every callback that the search is over."""
    try:
        yield
    except BaseException:
        first()
        for callback in callbacks:
            callback.end(None)
        raise
