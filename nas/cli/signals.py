"""Ctrl-C, SIGTERM and a lost terminal: a clean end within seconds, with the command that goes on."""

import os
import shlex
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

GRACE_S = 8.0
"""Seconds that a computation may take to notice; then the process ends all the same: what is finished is on disk by then."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_KEPT = {
    ("search",): "all calibrated blocks and finished trials are kept",
    ("calibrate",): "all finished blocks are kept",
    ("cascade",): "all finished blocks are kept",
    ("tabulate",): "what is measured is kept",
    ("tocsr", "finetune"): "the last checkpoint is kept",
    ("tocsr", "expand"): "the last checkpoint is kept",
}
"""Commands that go on when given again, and what is not lost."""


class Interrupted(BaseException):
    """A signal that asks the process to end; no `except Exception` on the way holds it up."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def interruptible() -> Iterator[None]:
    """Turns the first signal into `Interrupted`; a second one, or `GRACE_S` without a reaction, ends the process at once.

    Signals that the caller of the process ignores (`nohup`) stay ignored. Elsewhere than in the main thread this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN}
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    # written by the C handler, so the watch learns of a signal even while the main thread is inside one long operation
    wakeup = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(ours, set(before)), daemon=True).start()
    for number in before:
        signal.signal(number, _raise)
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        theirs.close()


def farewell(number: int) -> str:
    """What an interrupted command says last."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--new"]
    kept = next((text for verb, text in _KEPT.items() if tuple(arguments[: len(verb)]) == verb), None)
    if kept is None:
        return "interrupted; nothing of a comparison is kept" if arguments[:1] == ["compare"] else "interrupted"
    return f"interrupted by {signal.Signals(number).name}; {kept}. Go on with: {shlex.join(['nas', *arguments])}"


def _raise(number: int, _: FrameType | None) -> NoReturn:
    for other in _SIGNALS:
        if signal.getsignal(other) is _raise:
            signal.signal(other, signal.SIG_DFL)
    raise Interrupted(number)


def _watch(wakeups: socket.socket, numbers: set[signal.Signals]) -> None:
    """Ends the process when a signal has come and it is still there after the grace."""
    with wakeups:
        while content := wakeups.recv(1):
            if content[0] in numbers:
                break
        else:
            return
        wakeups.settimeout(GRACE_S)
        try:
            while wakeups.recv(64):
                pass
        except TimeoutError:
            os.write(2, f"{farewell(content[0])}\n".encode(errors="replace"))
            os._exit(128 + content[0])
