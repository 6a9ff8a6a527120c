"""The viewer's page and its frames, served to this machine alone.

A frame is asked for by its camera and answered with raw RGBA, which a browser puts on a canvas
without decoding. The browser asks for the next frame when it has drawn the last, so a slow machine
drops camera positions and never queues them. Only 127.0.0.1 is listened on, and a request that
names another host is refused: no page on the internet can reach the server through the browser.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
from loom.errors import UserError

from featdistill.data.rgba import BACKGROUNDS
from featdistill.orbit import Orbit
from featdistill.viewer import Viewer

HOST = "127.0.0.1"
NARROWEST, WIDEST = 32, 1600
"""Limits of a picture's width in pixels."""

PAGE_POLICY = (
    "default-src 'none'; connect-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
)


class Request:
    """What a browser asks for; every value is checked before anything is rendered."""

    def __init__(self, query: str) -> None:
        """Read the query of a frame.

        Raises:
            ValueError: A value is missing, no finite number, or out of its range.
        """
        values = {key: found[-1] for key, found in parse_qs(query).items()}
        missing = {"azimuth", "elevation", "distance", "width"} - values.keys()
        if missing:
            raise ValueError(f"missing: {', '.join(sorted(missing))}")
        numbers = {key: float(values[key]) for key in ("azimuth", "elevation", "distance", "width")}
        if not all(map(math.isfinite, numbers.values())):
            raise ValueError("a number is not finite")
        if not NARROWEST <= numbers["width"] <= WIDEST:
            raise ValueError(f"width {numbers['width']:g} is not in [{NARROWEST}, {WIDEST}]")
        if not 0 < numbers["distance"] < 1e6:
            raise ValueError(f"distance {numbers['distance']:g} is not in (0, 1e6)")
        self.width = int(numbers["width"])
        self.orbit = Orbit(numbers["azimuth"] % 360, numbers["elevation"], numbers["distance"])
        self.background = values.get("background", "white")
        if self.background not in BACKGROUNDS:
            raise ValueError(f"background {self.background!r} is not {' or '.join(BACKGROUNDS)}")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # keeps the connection between frames

    def __init__(self, viewer: Viewer, *arguments: object) -> None:
        self.viewer = viewer
        super().__init__(*arguments)  # ty: ignore[invalid-argument-type]

    def do_GET(self) -> None:
        """Answer `/` with the page and `/frame?...` with a frame."""
        port = self.connection.getsockname()[1]
        if self.headers.get("Host") not in (f"{HOST}:{port}", f"localhost:{port}"):
            return self._text(HTTPStatus.FORBIDDEN, "this server answers to its own name only")
        url = urlsplit(self.path)
        if url.path == "/":
            return self._send(page(self.viewer), "text/html; charset=utf-8")
        if url.path != "/frame":
            return self._text(HTTPStatus.NOT_FOUND, "there is / and /frame")
        try:
            asked = Request(url.query)
        except ValueError as error:
            return self._text(HTTPStatus.BAD_REQUEST, str(error))
        try:
            frame = self.viewer.frame(asked.orbit, asked.width, asked.background)
        except (RuntimeError, MemoryError) as error:  # a device or a memory that has no more room
            reason = str(error).partition("\n")[0] or type(error).__name__
            return self._text(HTTPStatus.INTERNAL_SERVER_ERROR, f"no picture: {reason}")
        height, width, _ = frame.pixels.shape
        rgba = np.full((height, width, 4), 255, np.uint8)
        rgba[..., :3] = frame.pixels
        said = {"X-Size": f"{width} {height}", "X-Psnr": f"{frame.psnr_db:.2f}"}
        return self._send(rgba.tobytes(), "application/octet-stream", said)

    def _send(self, body: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Content-Security-Policy", PAGE_POLICY)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _text(self, status: HTTPStatus, message: str) -> None:
        body = (message + "\n").encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing: a line for each frame would hide everything else."""


def page(viewer: Viewer) -> bytes:
    """Return the page with where it begins."""
    taught = viewer.cameras.width
    width = min(max(taught, NARROWEST), WIDEST)
    begin = {**viewer.start._asdict(), "step": viewer.step, "width": width, "taught": taught}
    text = files("featdistill").joinpath("viewer.html").read_text(encoding="utf-8")
    return text.replace("/*BEGIN*/null", json.dumps(begin)).encode()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Pass over a browser that has left its page; anything else is shown."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def make_server(viewer: Viewer, port: int) -> ThreadingHTTPServer:
    """Listen on 127.0.0.1.

    Args:
        viewer: What is shown.
        port: 0 takes any free one.

    Raises:
        UserError: The port is taken or not allowed.
    """
    handler: Callable[..., BaseHTTPRequestHandler] = partial(_Handler, viewer)
    try:
        return _Server((HOST, port), handler)
    except (OSError, OverflowError) as error:
        raise UserError(
            f"port {port}: {getattr(error, 'strerror', None) or error}",
            hint="give another --port, or 0 for any free one",
        ) from error
