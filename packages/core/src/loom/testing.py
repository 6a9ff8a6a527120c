"""What tests of several packages share: a browser that they can look at pages with.

The browser is a Chromium without a window, spoken to in the DevTools protocol over two pipes, so no
further library and no port is needed. A test that needs one is skipped where there is none.
"""

import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
NO_BROWSER = f"none of {', '.join(NAMES)} is installed"

_OPTIONS = (
    "--headless",
    "--remote-debugging-pipe",
    "--no-first-run",
    "--no-sandbox",  # refused without it for root, as in containers
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--disable-sync",
    "--hide-scrollbars",
)
# Chromium reads commands from descriptor 3 and answers on 4.
_LAUNCH = (
    "import os, sys\n"
    "os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4)\n"
    "os.execvp(sys.argv[3], sys.argv[3:])\n"
)


def find_browser() -> str | None:
    """Return the path of a Chromium, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One page in a browser without a window; a context manager."""

    def __init__(self, width: int = 1000, height: int = 800, timeout: float = 60.0) -> None:
        """Start the browser.

        Args:
            width: Of the window, in CSS pixels.
            height: Likewise.
            timeout: Seconds to wait for any answer.
        """
        found = find_browser()
        if found is None:
            raise RuntimeError(NO_BROWSER)
        self._timeout = timeout
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        command_read, self._commands = os.pipe()
        self._answers, answer_write = os.pipe()
        window = (f"--window-size={width},{height}", f"--user-data-dir={self._profile.name}")
        self._process = subprocess.Popen(
            [sys.executable, "-c", _LAUNCH, str(command_read), str(answer_write)]
            + [found, *_OPTIONS, *window],
            pass_fds=(command_read, answer_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(command_read)
        os.close(answer_write)
        self._buffer = b""
        self._sent = 0
        self._session: str | None = None
        self.messages: list[str] = []
        """What the page wrote to its console, and its uncaught errors."""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        self._call("Runtime.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._commands)
        os.close(self._answers)
        self._profile.cleanup()

    def open(self, address: str | Path) -> None:
        """Load a page: an address, or a file."""
        url = address.resolve().as_uri() if isinstance(address, Path) else address
        self._call("Page.navigate", url=url)
        self.wait_for("document.readyState === 'complete'")

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression in the page, as JSON holds it."""
        answer = self._call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def wait_for(self, expression: str) -> None:
        """Wait until a JavaScript expression is true.

        Raises:
            TimeoutError: It did not become true in time.
        """
        end = time.monotonic() + self._timeout
        while not self.evaluate(expression):
            if time.monotonic() > end:
                raise TimeoutError(f"{expression} is still false; the page said {self.messages}")
            time.sleep(0.02)

    def drag(self, start: tuple[float, float], end: tuple[float, float], moves: int = 5) -> None:
        """Press the left button at a point of the window, move in steps, let go."""
        self._mouse("mousePressed", start, buttons=1)
        for i in range(1, moves + 1):
            along = [a + (b - a) * i / moves for a, b in zip(start, end, strict=True)]
            self._mouse("mouseMoved", (along[0], along[1]), buttons=1)
        self._mouse("mouseReleased", end, buttons=0)

    def _mouse(self, kind: str, place: tuple[float, float], buttons: int) -> None:
        self._call(
            "Input.dispatchMouseEvent",
            type=kind,
            x=place[0],
            y=place[1],
            button="left",
            buttons=buttons,
            clickCount=1,
        )

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result; what else arrives meanwhile is events."""
        self._sent += 1
        message = {"id": self._sent, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + self._timeout
        while True:
            answer = self._receive(end, method)
            if answer.get("id") == self._sent:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            if answer.get("method") in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown"):
                self.messages.append(json.dumps(answer["params"]))

    def _receive(self, end: float, method: str) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, end - time.monotonic()))
            part = os.read(self._answers, 1 << 16) if ready else b""
            if not part:
                what = "ended" if ready else f"gave no answer in {self._timeout:.0f} s"
                raise TimeoutError(f"{method}: the browser {what}")
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)
