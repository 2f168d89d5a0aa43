"""A headless chromium, steered over a pipe (the DevTools protocol): one start for all tests of a session.

`--dump-dom` cannot look at a page that is 360 px wide (a headless window has 500 at least); device metrics can.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--remote-debugging-pipe",
)  # fmt: skip

KEYS = {
    "Tab": (9, ""),
    "Escape": (27, ""),
    "Enter": (13, "\r"),
    "ArrowLeft": (37, ""),
    "ArrowRight": (39, ""),
}
"""Key → its code on keyboards, and the text that it writes."""


class Chromium:
    """A browser with one page. `requests` are the addresses that it asked for, `console` what it complained of."""

    def __init__(self, user_data: Path) -> None:
        program = shutil.which("chromium") or shutil.which("chromium-browser")
        if program is None:
            raise FileNotFoundError(
                "no chromium found, and pages are tested in a real browser: sudo apt-get install chromium"
            )
        (commands, self._commands), (self._answers, answers) = _high_pipe(), _high_pipe()
        self._process = subprocess.Popen(
            [
                "bash",
                "-c",
                f'exec "$@" 3<&{commands} 4>&{answers}',
                "-",
                program,
                *FLAGS,
                f"--user-data-dir={user_data}",
            ],
            pass_fds=(commands, answers),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(commands)
        os.close(answers)
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        self.requests: list[str] = []
        self.console: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]

    def _read(self) -> dict[str, Any]:
        deadline = time.monotonic() + 60
        while b"\0" not in self._buffer:
            if not select.select([self._answers], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError("chromium does not answer")
            part = os.read(self._answers, 1 << 20)
            if not part:
                raise RuntimeError("chromium ended: try `chromium --headless --no-sandbox --dump-dom about:blank`")
            self._buffer += part
        text, _, self._buffer = self._buffer.partition(b"\0")
        event = json.loads(text)
        if event.get("method") == "Network.requestWillBeSent":
            self.requests.append(event["params"]["request"]["url"])
        self.console += _complaints(event)
        return event

    def open(self, page: Path, *, width: int, dark: bool = False, scripts: bool = True) -> None:
        """Open a page as a screen of this width shows it; with scripts, wait until its figures are drawn."""
        self.call("Page.navigate", url="about:blank")
        self.requests.clear()
        self.console.clear()
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        self.theme(dark=dark)
        self.call("Emulation.setScriptExecutionDisabled", value=not scripts)
        self.call("Page.navigate", url=page.resolve().as_uri())
        # the page's own scripts may be off, evaluation from outside works all the same
        loaded = "location.protocol == 'file:' && document.readyState == 'complete'"
        drawn = " && (document.body.dataset.ready == 'true' || !!document.body.dataset.errors)"
        self.wait(loaded + drawn if scripts else loaded)

    def theme(self, *, dark: bool) -> None:
        """Be a screen whose user likes it dark, or not."""
        self.call(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}],
        )

    def wait(self, condition: str) -> None:
        """Wait until a condition holds in the page."""
        deadline = time.monotonic() + 60
        while not self.value(condition):
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within a minute: {condition}")
            time.sleep(0.05)

    def value(self, expression: str) -> Any:
        """Evaluate JavaScript in the page; promises are awaited."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"].get("description", "failed"))
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        """Press and release a key, as the keyboard does it."""
        code, letters = KEYS[key]
        for kind in ("rawKeyDown", "char", "keyUp") if letters else ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, text=letters)

    def screenshot(self, path: Path) -> None:
        """Write the whole page as an image."""
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def pdf(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.printToPDF", printBackground=True)["data"]))

    def close(self) -> None:
        self._session = None
        try:
            self.call("Browser.close")
            self._process.wait(10)
        except (OSError, RuntimeError, TimeoutError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        finally:
            os.close(self._commands)
            os.close(self._answers)


def _complaints(event: dict[str, Any]) -> list[str]:
    """What an event says that is wrong in the page: console.error and warn, exceptions, what the browser refused."""
    method, params = event.get("method"), event.get("params", {})
    if method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
        return [" ".join(str(value.get("value", value.get("description"))) for value in params["args"])]
    if method == "Runtime.exceptionThrown":
        return [params["exceptionDetails"]["exception"].get("description", params["exceptionDetails"]["text"])]
    if method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
        return [params["entry"]["text"]]
    return []


def _high_pipe() -> tuple[int, int]:
    """Make a pipe whose numbers stay clear of the 3 and 4 that chromium wants."""
    ends = os.pipe()
    high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 20) for end in ends]
    for end in ends:
        os.close(end)
    return high[0], high[1]
