"""A Chromium without a window, driven by its debugging protocol over a pair of pipes: JSON messages, each ended by a zero byte."""

import base64
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Browser:
    """A running browser: commands and their results, events as they come."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers = os.fdopen(commands, "wb", 0), os.fdopen(answers, "rb")
        self._number, self._rest, self.seen = 0, b"", list[dict[str, Any]]()

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """The result of a command; events that come before it are kept in `seen`."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters, **({"sessionId": session} if session else {})}
        self._commands.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise SystemExit(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result
            self.seen.append(answer)

    def wait(self, event: str, session: str) -> None:
        """Until the event has come in a session."""
        while not any(message.get("method") == event and message.get("sessionId") == session for message in self.seen):
            self.seen.append(self._read())

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            part = self._answers.read1(1 << 16)
            if not part:
                raise SystemExit("the browser has ended")
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found


@contextmanager
def browser(width: int) -> Iterator[Browser]:
    """A fresh browser with a profile of its own."""
    (their_in, our_out), (our_in, their_out) = os.pipe(), os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", f"--user-data-dir={profile}", f"--window-size={width},900"]
        start = ["bash", "-c", f'exec "$@" 3<&{their_in} 4>&{their_out}', "_", str(CHROMIUM), *options]
        process = subprocess.Popen(start, pass_fds=(their_in, their_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(their_in)
        os.close(their_out)
        found = Browser(our_out, our_in)
        try:
            yield found
        finally:
            found.call("Browser.close")
            process.wait(timeout=60)


class Page:
    """A page as somebody sees it who has a window of this width, a preference of `light` or `dark`, and a keyboard."""

    def __init__(self, browser: Browser, width: int, scheme: str = "light") -> None:
        self._browser = browser
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        self._session: str = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "Performance"):
            self.call(f"{domain}.enable", **({"timeDomain": "threadTicks"} if domain == "Performance" else {}))
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a command of the debugging protocol."""
        return self._browser.call(method, self._session, **parameters)

    def open(self, file: Path) -> None:
        """Loads a file."""
        self.call("Page.navigate", url=file.resolve().as_uri())
        self._browser.wait("Page.loadEventFired", self._session)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in found:
            raise SystemExit(f"{expression}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def press(self, key: str, *, shift: bool = False) -> None:
        """Presses a key, by its name (`Tab`, `ArrowRight`, `+`)."""
        code = {"Tab": 9, "Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowRight": 39}.get(key, 0)
        text = {"text": "\r"} if key == "Enter" else {"text": key} if len(key) == 1 else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, modifiers=8 * shift, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code, modifiers=8 * shift)

    def picture(self, to: Path, *, whole: bool = True) -> None:
        """Writes a PNG of the page, or of what the window shows of it."""
        to.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]))

    def complaints(self) -> list[str]:
        """What the page wrote to the console, and errors of its scripts."""
        return [json.dumps(message["params"]) for message in self._seen("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")]

    def fetched(self) -> list[str]:
        """Addresses that were asked for."""
        return [message["params"]["request"]["url"] for message in self._seen("Network.requestWillBeSent")]

    def _seen(self, *methods: str) -> list[dict[str, Any]]:
        return [message for message in self._browser.seen if message.get("method") in methods and message.get("sessionId") == self._session]
