"""A headless Chromium driven over its debugging pipe: what a page looks like, and what it complains of."""

from __future__ import annotations

import base64
import json
import os
import select
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PATIENCE_S = 120.0


@dataclass
class Browser:
    """One tab. `complaints` are what the page wrote to its console or failed to load."""

    to: int
    back: int
    session: str = ""
    number: int = 0
    rest: bytes = b""
    complaints: list[str] = field(default_factory=list)
    events: list[str] = field(default_factory=list)

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer["error"]
                result: dict[str, Any] = answer["result"]
                return result

    def wait(self, event: str) -> None:
        while event not in self.events:
            self._next()

    def _next(self) -> dict[str, Any]:
        ends_at = time.monotonic() + PATIENCE_S
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.back], [], [], max(0.0, ends_at - time.monotonic()))
            assert ready, f"the browser said nothing for {PATIENCE_S} s"
            self.rest += (chunk := os.read(self.back, 1 << 16))
            assert chunk, "the browser ended"
        line, _, self.rest = self.rest.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        self._notice(message.get("method", ""), message.get("params", {}))
        return message

    def _notice(self, event: str, facts: dict[str, Any]) -> None:
        self.events.append(event)
        if event == "Runtime.consoleAPICalled" and facts["type"] in ("error", "warning", "assert"):
            self.complaints.append(f"console: {facts['args']}")
        elif event == "Runtime.exceptionThrown":
            self.complaints.append(f"exception: {facts['exceptionDetails']['text']}")
        elif event == "Log.entryAdded" and facts["entry"]["level"] in ("error", "warning"):
            self.complaints.append(f"log: {facts['entry']['text']}")
        elif event == "Network.loadingFailed":
            self.complaints.append(f"not loaded: {facts['errorText']}")

    def open(self, page: Path, width: int, height: int, is_dark: bool = False) -> None:
        """Load a page at a width in CSS pixels."""
        is_phone = width < 600
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=is_phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])
        self.events.clear()
        self.ask("Page.navigate", url=page.absolute().as_uri())
        self.wait("Page.loadEventFired")

    def value(self, expression: str) -> Any:
        """What an expression is in the page (JSON-able; promises are awaited)."""
        found = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def picture(self, path: Path) -> Path:
        """A picture of the whole page."""
        shot = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))
        return path


@contextmanager
def running(program: str, folder: Path) -> Iterator[Browser]:
    """A browser with one empty tab, its profile in a folder; ended on the way out."""
    options = [
        program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
        "--no-first-run", "--remote-debugging-pipe", f"--user-data-dir={folder / 'profile'}", "about:blank",
    ]  # fmt: skip
    # The browser reads commands from descriptor 3 and answers on 4, wherever the pipes were before.
    theirs_in, to = os.pipe()
    back, theirs_out = os.pipe()
    script = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
    process = subprocess.Popen(
        ["bash", "-c", script, "browser", *options],
        pass_fds=(theirs_in, theirs_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(theirs_in)
    os.close(theirs_out)
    browser = Browser(to, back)
    try:
        targets = browser.ask("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        browser.session = browser.ask("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            browser.ask(f"{domain}.enable")
        yield browser
    finally:
        process.kill()
        process.wait(PATIENCE_S)
        os.close(to)
        os.close(back)
