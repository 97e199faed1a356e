"""A headless Chromium, driven by its DevTools protocol over pipes: what people see of a page, and its complaints.

It is looked for on PATH (`chromium`, `chromium-browser`, `google-chrome`) or at TUNEJOB_CHROMIUM; Debian: `apt-get
install chromium`.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--disable-extensions",
    "--remote-debugging-pipe", "--disable-background-networking", "--disable-dev-shm-usage",
    "--font-render-hinting=none", "--disable-component-update",
)  # fmt: skip
LOUD = {"error", "warning", "assert"}
PHONE, DESK = 390, 1180


def found() -> str | None:
    """The browser's path, if there is one."""
    return os.environ.get("TUNEJOB_CHROMIUM") or next((path for name in NAMES if (path := shutil.which(name))), None)


class Page:
    """One tab. `complaints`: errors and warnings of its console, exceptions of its scripts, what its policy refused."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser, self._session = browser, session
        self.complaints: list[str] = []
        self.requests: list[str] = []

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._browser.ask(method, parameters, self._session)

    def hear(self, event: dict[str, Any]) -> None:
        method, said = event["method"], event["params"]
        if method == "Runtime.exceptionThrown":
            self.complaints.append(said["exceptionDetails"]["text"])
        elif method == "Runtime.consoleAPICalled" and said["type"] in LOUD:
            self.complaints.append(str([argument.get("value") for argument in said["args"]]))
        elif method == "Log.entryAdded" and said["entry"]["level"] in LOUD:
            self.complaints.append(said["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(said["request"]["url"])

    def look(self, path: Path, width: int = DESK, dark: bool = False) -> None:
        """Opens a file as a screen of that width shows it."""
        phone = width <= PHONE
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=844 if phone else 900,
            deviceScaleFactor=1,
            mobile=phone,
        )
        self.ask(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}],
        )
        self.ask("Page.navigate", url=path.resolve().as_uri())
        self._browser.wait_for("Page.loadEventFired")

    def say(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def picture(self, target: Path, height: int | None = None) -> None:
        """A PNG of the whole page, or of its first `height` pixels."""
        size = self.ask("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": min(height or 16_000, size["height"]), "scale": 1}
        shot = self.ask("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        target.write_bytes(base64.b64decode(shot["data"]))

    def printed(self, target: Path) -> None:
        target.write_bytes(base64.b64decode(self.ask("Page.printToPDF", printBackground=True)["data"]))


class Browser:
    """Messages are JSON with a zero byte after each, on descriptors 3 and 4 of the browser."""

    def __init__(self, sends: int, hears: int) -> None:
        self._sends, self._hears = sends, os.fdopen(hears, "rb")
        self._last, self._rest = 0, b""
        self._pages: dict[str, Page] = {}

    def ask(self, method: str, parameters: dict[str, Any], session: str | None = None) -> dict[str, Any]:
        self._last += 1
        message = {"id": self._last, "method": method, "params": parameters} | (
            {"sessionId": session} if session else {}
        )
        os.write(self._sends, json.dumps(message).encode() + b"\0")
        for answer in self._messages():
            if answer.get("id") == self._last:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
        raise AssertionError("the browser has gone")

    def wait_for(self, event: str) -> None:
        assert any(message.get("method") == event for message in self._messages()), "the browser has gone"

    def _messages(self) -> Iterator[dict[str, Any]]:
        while True:
            while b"\0" in self._rest:
                one, self._rest = self._rest.split(b"\0", 1)
                message = json.loads(one)
                if "method" in message and message.get("sessionId") in self._pages:
                    self._pages[message["sessionId"]].hear(message)
                yield message
            more = self._hears.read1(1 << 16)
            if not more:
                return
            self._rest += more

    def page(self) -> Page:
        target = self.ask("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = self.ask("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        page = self._pages[session] = Page(self, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.ask(f"{domain}.enable")
        return page


@contextmanager
def browser(options: Sequence[str] = ()) -> Iterator[Browser]:
    """A browser with a profile of its own, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        (reads, ours_out), (ours_in, writes) = os.pipe(), os.pipe()
        # A shell puts the two descriptors where the browser looks, 3 to read, 4 to write; until then they are elsewhere
        theirs_in, theirs_out = (fcntl.fcntl(number, fcntl.F_DUPFD, 20) for number in (reads, writes))
        command = f'exec "$0" "$@" 3<&{theirs_in} 4>&{theirs_out} {theirs_in}<&- {theirs_out}>&-'
        process = subprocess.Popen(
            ["bash", "-c", command, str(found()), *OPTIONS, f"--user-data-dir={profile}", *options],
            pass_fds=(theirs_in, theirs_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for number in (reads, writes, theirs_in, theirs_out):
            os.close(number)
        try:
            yield Browser(ours_out, ours_in)
        finally:
            os.close(ours_out)
            process.terminate()
            process.wait(20)
