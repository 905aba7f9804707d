"""Ctrl-C, SIGTERM and a lost terminal end a command within seconds, whatever it is doing."""

import signal
import subprocess
import sys

import pytest

from nas.cli import signals

PREAMBLE = """
import hashlib, sys, time
from nas.cli import signals
signals.GRACE_S = 0.3
sys.argv = ["nas", "search", "--eps", "0.1", "--new", "--name", "a b"]
def work():
    {work}
try:
    with signals.interruptible():
        print("ready", flush=True)
        work()
except signals.Interrupted as interrupt:
    print(signals.farewell(interrupt.number), file=sys.stderr)
    sys.exit(128 + interrupt.number)
"""

WAITING = "time.sleep(30)"
IN_ONE_LONG_OPERATION = 'hashlib.pbkdf2_hmac("sha256", b"x" * 64, b"salt", 60_000_000)'
SWALLOWING = """
    try: time.sleep(30)
    except Exception: time.sleep(30)
"""


def interrupted(work: str, number: signal.Signals, times: int = 1) -> tuple[int, str]:
    heard = {own: signal.signal(own, signal.SIG_DFL) for own in (signal.SIGINT, signal.SIGHUP)}  # ignored in the background or under nohup, and by children
    process = subprocess.Popen([sys.executable, "-c", PREAMBLE.format(work=work)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for own, handler in heard.items():
        signal.signal(own, handler)
    assert process.stdout is not None
    process.stdout.readline()
    for _ in range(times):
        process.send_signal(number)
    _, stderr = process.communicate(timeout=300)
    return process.returncode, stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
@pytest.mark.parametrize("work", [WAITING, IN_ONE_LONG_OPERATION, SWALLOWING], ids=["waiting", "one long operation", "swallowing"])
def test_a_signal_ends_the_command_and_says_how_to_go_on(work: str, number: signal.Signals, code: int) -> None:
    found, stderr = interrupted(work, number)
    assert found == code
    assert stderr == f"interrupted by {number.name}; all calibrated blocks and finished trials are kept. Go on with: nas search --eps 0.1 --name 'a b'\n"


def test_signals_that_the_caller_ignores_stay_ignored() -> None:
    code = PREAMBLE.format(work="time.sleep(1)").replace("try:\n", "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\ntry:\n", 1)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGHUP)
    assert process.wait(300) == 0


def test_a_verb_that_cannot_be_gone_on_with_just_ends() -> None:
    code = PREAMBLE.format(work=WAITING).replace('"search"', '"show"')
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    process.terminate()
    assert process.communicate(timeout=300)[1] == "interrupted\n"
    assert process.returncode == 143


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tocsr", "finetune", "RUN"], "the last checkpoint is kept. Go on with: nas tocsr finetune RUN"),
        (["tocsr", "upscale", "x"], "interrupted"),
        (["compare", "--eps", "1"], "interrupted; nothing of a comparison is kept"),
    ],
)
def test_trainings_say_how_to_go_on(words: list[str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["nas", *words])
    assert signals.farewell(2).endswith(said)
