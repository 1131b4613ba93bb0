"""A headless Chromium, by the Chrome DevTools Protocol: a page at any size, in light and dark."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from websockets.sync.client import ClientConnection, connect

_BOUND: Final = 120.0
"""Seconds after which Chromium, or one of its answers, counts as hung."""
_FLAGS: Final = (
    "--headless=new",
    "--no-sandbox",  # as root, as in CI, Chromium does not start with one
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--no-first-run",
    # No traffic of its own.
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
    "--disable-quic",
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
_LOOK: Final = """(async () => {
  const blob = await (await fetch("data:image/png;base64,%s")).blob();
  const picture = await createImageBitmap(blob);
  const context = new OffscreenCanvas(picture.width, picture.height).getContext("2d");
  context.drawImage(picture, 0, 0);
  const bytes = context.getImageData(0, 0, picture.width, picture.height).data;
  const pixels = new Uint32Array(bytes.buffer);
  const counts = new Map();
  for (const pixel of pixels) counts.set(pixel, (counts.get(pixel) || 0) + 1);
  let [most, often] = [0, 0];
  for (const [pixel, count] of counts) if (count > often) [most, often] = [pixel, count];
  const [red, green, blue] = [most & 255, (most >> 8) & 255, (most >> 16) & 255];
  return [1 - often / pixels.length, (red + green + blue) / 765];
})()"""


@dataclass(frozen=True)
class Screenshot:
    """What a page looks like."""

    png: bytes
    drawn: float
    """Share of the pixels that have not the most frequent colour."""
    brightness: float
    """Brightness of the most frequent colour, the background's: 0 black to 1 white."""


class Browser:
    """One tab of a browser that runs."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._numbers = itertools.count(1)
        self._session = ""
        self._events: list[dict[str, Any]] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        self._call("Page.enable")

    def _call(self, method: str, **params: object) -> dict[str, Any]:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        self._connection.send(json.dumps(message))
        while (answer := self._next()).get("id") != number:
            self._events.append(answer)
        assert "error" not in answer, f"{method}: {answer['error']}"
        result: dict[str, Any] = answer["result"]
        return result

    def _next(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self._connection.recv(timeout=_BOUND))
        return message

    def open(self, url: str) -> None:
        """Load a page with all that belongs to it."""
        self._events.clear()
        answer = self._call("Page.navigate", url=url)
        assert "errorText" not in answer, f"{url}: {answer['errorText']}"
        while not any(event.get("method") == "Page.loadEventFired" for event in self._events):
            self._events.append(self._next())

    def show(self, width: int, height: int, scheme: str) -> None:
        """Give the window a size, and let the user prefer a light or a dark scheme."""
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self._call("Emulation.setEmulatedMedia", features=[feature])

    def evaluate(self, script: str) -> Any:
        """Return the value of JavaScript in the page; a promise's value when it is there."""
        answer = self._call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def screenshot(self) -> Screenshot:
        """Return a picture of the window, and what it shows."""
        data = self._call("Page.captureScreenshot", format="png")["data"]
        drawn, brightness = self.evaluate(_LOOK % data)
        return Screenshot(base64.b64decode(data), drawn, brightness)


@contextlib.contextmanager
def running(program: Path, folder: Path) -> Iterator[Browser]:
    """Run Chromium for the block, with a new profile in `folder`."""
    command = [str(program), *_FLAGS, "--remote-debugging-port=0", f"--user-data-dir={folder}"]
    with (folder / "log").open("wb") as log, subprocess.Popen(command, stderr=log) as process:
        try:
            with connect(_address(process, folder), max_size=None, proxy=None) as connection:
                yield Browser(connection)
        finally:
            process.kill()


def _address(process: subprocess.Popen[bytes], folder: Path) -> str:
    """Wait for the file in which Chromium writes the port that the kernel chose for it."""
    end = time.monotonic() + _BOUND
    while time.monotonic() < end:
        assert process.poll() is None, (folder / "log").read_text()
        with contextlib.suppress(FileNotFoundError):
            lines = (folder / "DevToolsActivePort").read_text().split()
            if len(lines) == 2:
                return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
        time.sleep(0.02)
    raise TimeoutError((folder / "log").read_text())
