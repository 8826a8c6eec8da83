"""A headless Chromium, spoken to over two pipes in the DevTools protocol: JSON messages with a zero byte after each."""

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
PATIENCE = 60.0  # seconds for one answer
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-pipe"),
)


def find() -> str | None:
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@dataclass
class Browser:
    """One page. `complaints`: what reached the console as an error or a warning, and exceptions nobody caught."""

    answers: int
    requests: int
    session: str = ""
    number: int = 0
    unread: bytes = b""
    complaints: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)
    events: set[str] = field(default_factory=set)

    def start(self) -> None:
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def open(self, page: Path | str, width: int, dark: bool = False, media: str = "screen", height: int = 900) -> None:
        """page: a file, or an address."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", media=media, features=[scheme])
        self.events.discard("Page.loadEventFired")
        self.ask("Page.navigate", url=page if isinstance(page, str) else page.as_uri())
        end = monotonic() + PATIENCE
        while "Page.loadEventFired" not in self.events:
            self._heed(self._message(end))
        # Two frames later styles and scripts have run, and their complaints have arrived.
        self.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")

    def evaluate(self, expression: str) -> Any:
        done = self.ask("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def screenshot(self, whole: bool = True) -> bytes:
        """PNG."""
        return base64.b64decode(self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"])

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        self.number += 1
        message = {"id": self.number, "method": method, "params": params} | ({"sessionId": self.session} if self.session else {})
        os.write(self.requests, json.dumps(message).encode() + b"\0")
        end = monotonic() + PATIENCE
        while True:
            said = self._message(end)
            if said.get("id") == self.number:
                assert "error" not in said, (method, said["error"])
                return said["result"]
            self._heed(said)

    def _message(self, end: float) -> dict[str, Any]:
        while b"\0" not in self.unread:
            ready, _, _ = select.select([self.answers], [], [], max(end - monotonic(), 0))
            assert ready, "the browser does not answer"
            more = os.read(self.answers, 1 << 16)
            assert more, "the browser is gone"
            self.unread += more
        message, _, self.unread = self.unread.partition(b"\0")
        return json.loads(message)

    def _heed(self, said: dict[str, Any]) -> None:
        method, params = said.get("method", ""), said.get("params", {})
        self.events.add(method)
        if method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(params["exceptionDetails"]))
        if method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.complaints.append(json.dumps(params["args"]))
        if method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.complaints.append(params["entry"]["text"])
        if method == "Network.requestWillBeSent":
            self.fetched.append(params["request"]["url"])


@contextmanager
def browser(program: str) -> Iterator[Browser]:
    """A browser of its own, with an empty profile; gone afterwards."""
    to_read, answers = os.pipe()
    requests, to_write = os.pipe()

    def attach() -> None:  # the protocol wants its pipes to be 3 and 4
        for here, there in ((os.dup(requests), 3), (os.dup(answers), 4)):
            os.dup2(here, there)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=attach,
            close_fds=False,
            start_new_session=True,
        )
        os.close(answers)
        os.close(requests)
        try:
            page = Browser(to_read, to_write)
            page.start()
            yield page
            page.session = ""
            page.ask("Browser.close")
            process.wait(PATIENCE)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            os.close(to_read)
            os.close(to_write)
