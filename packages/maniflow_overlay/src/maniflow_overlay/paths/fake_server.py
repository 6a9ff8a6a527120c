"""A model server without a model: real HTTP, made-up answers, faults on demand.

It speaks both protocols as the real servers do: HAMSTER's handles one request at a time, answers
422 to an unknown model and gives its content as a list; an OpenAI server answers 404 and gives
text. What it answers to a picture follows from the picture's bytes and the seed alone. `/counts`
tells how often each picture was asked for, which is how the tests know that no call was repeated.
"""

from __future__ import annotations

import base64
import hashlib
import json
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from loom.errors import UserError

FAULTS = ("error", "busy", "drop", "slow", "cut", "prose", "garbage")
LARGEST_REQUEST = 32 * 2**20


@dataclass(frozen=True)
class FakeModel:
    """What a fake server pretends.

    Attributes:
        kind: `hamster` or `openai`.
        model: The name it answers to.
        latency_s: How long it thinks.
        seed: Of answers and faults.
        faults: Share of the calls by kind of fault: `error` (500), `busy` (503), `drop` (the
            connection closes), `slow` (20 times the latency), `cut` (the tokens run out unless
            there are twice as many), `prose` (no list), `garbage` (no JSON).
    """

    kind: str = "hamster"
    model: str = "Hamster_dev"
    latency_s: float = 0.02
    seed: int = 0
    faults: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = set(self.faults) - set(FAULTS)
        if unknown:
            raise UserError(
                f"no such fault: {', '.join(sorted(unknown))}", hint=f"one of {', '.join(FAULTS)}"
            )
        if any(share < 0 for share in self.faults.values()) or sum(self.faults.values()) > 1:
            raise UserError("the shares of the faults are negative or add up to more than 1")

    def fault(self, picture: str, call: int) -> str:
        """Return the fault of the n-th call for a picture, or nothing."""
        drawn = random.Random(f"{self.seed}/{picture}/{call}").random()  # noqa: S311
        for name, share in self.faults.items():
            drawn -= share
            if drawn < 0:
                return name
        return ""

    def answer(self, picture: str) -> str:
        """Return a well-formed answer for a picture."""
        rng = random.Random(f"{self.seed}/{picture}")  # noqa: S311
        items = [f"({rng.random():.2f}, {rng.random():.2f})" for _ in range(rng.randint(3, 7))]
        items.insert(2, "<action>Close Gripper</action>")
        items.append("<action>Open Gripper</action>")
        return f"First the gripper moves. <ans>[{', '.join(items)}]</ans>"


class FakeServer:
    """Serves a fake model from a thread; use it as a context manager."""

    def __init__(self, model: FakeModel, host: str = "127.0.0.1", port: int = 0) -> None:
        """Take the port, so that connections queue from now on.

        Raises:
            UserError: The port is taken.
        """
        self.model = model
        self.calls: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.most_at_once = 0
        self.busy_s = 0.0
        self.first = self.last = 0.0
        self._at_once = 0
        self._count = threading.Lock()
        self._one_at_a_time = threading.Lock() if model.kind == "hamster" else nullcontext()
        self._ending = threading.Event()
        handler = type("Handler", (_Handler,), {"fake": self})
        try:
            self._server = _Server((host, port), handler)
        except OSError as error:
            raise UserError(f"{host}:{port}: {(error.strerror or str(error)).lower()}") from error
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    @property
    def url(self) -> str:
        """Where it listens."""
        host, port = self._server.server_address[:2]
        return f"http://{host}:{port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ending.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def counts(self) -> dict[str, Any]:
        """Return what `GET /counts` answers."""
        with self._count:
            seconds = self.last - self.first
            return {
                "calls": dict(self.calls),
                "answered": dict(self.answered),
                "most_at_once": self.most_at_once,
                "busy_share": self.busy_s / seconds if seconds > 0 else None,
            }

    def reply(self, body: bytes) -> tuple[int, bytes] | None:
        """Answer a request body with status and content; None closes the connection."""
        try:
            request = json.loads(body)
            parts = request["messages"][0]["content"]
            url = parts[0]["image_url"]["url"]
            jpeg = base64.b64decode(url.removeprefix("data:image/jpeg;base64,"), validate=True)
            if parts[1]["type"] != "text" or jpeg[:2] != b"\xff\xd8":
                raise ValueError("expected a JPEG, then text")
            tokens = int(request["max_tokens"])
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            return 400, _json({"error": f"bad request: {error!r}"})
        if request.get("model") != self.model.model:
            status = 422 if self.model.kind == "hamster" else 404
            return status, _json({"error": f"the model {request.get('model')!r} does not exist"})
        picture = hashlib.sha256(jpeg).hexdigest()[:16]
        with self._count:
            number = self.calls[picture]
            self.calls[picture] += 1
        fault = self.model.fault(picture, number)
        self._think(self.model.latency_s * (20 if fault == "slow" else 1))
        return self._outcome(fault, picture, tokens)

    def _think(self, seconds: float) -> None:
        with self._one_at_a_time:
            with self._count:
                self._at_once += 1
                self.most_at_once = max(self.most_at_once, self._at_once)
                begin = time.monotonic()
                self.first = self.first or begin
            self._ending.wait(seconds)
            with self._count:
                self._at_once -= 1
                self.last = time.monotonic()
                self.busy_s += self.last - begin

    def _outcome(self, fault: str, picture: str, tokens: int) -> tuple[int, bytes] | None:
        if fault == "drop":
            return None
        if fault == "garbage":
            return 200, b"<html>it works</html>"
        if fault in ("error", "busy"):
            return (500 if fault == "error" else 503), _json({"error": "CUDA out of memory"})
        text = self.model.answer(picture)
        if fault == "prose":
            text = "The gripper should move to the object and grasp it."
        with self._count:
            cut = fault == "cut" and not self.answered[picture]
            self.answered[picture] += 1
        if cut:
            text = text[: text.index("<ans>") + 30]
        return 200, _json(self._completion(text, "length" if cut else "stop"))

    def _completion(self, text: str, reason: str) -> dict[str, Any]:
        if self.model.kind == "hamster":
            content: Any = [{"type": "text", "text": text}]
            return {"choices": [{"message": {"role": "assistant", "content": content}}]}
        message = {"role": "assistant", "content": text}
        return {"choices": [{"message": message, "finish_reason": reason}], "object": "chat"}


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing about clients that went away."""


class _Handler(BaseHTTPRequestHandler):
    fake: FakeServer
    protocol_version = "HTTP/1.1"
    timeout = 60
    disable_nagle_algorithm = True  # or each answer waits 40 ms for an acknowledgement

    def do_GET(self) -> None:
        """Answer health checks and counts."""
        known: dict[str, Any] = {"/counts": self.fake.counts(), "/health": {}}
        if self.fake.model.kind == "openai":
            known["/v1/models"] = {"data": [{"id": self.fake.model.model}]}
        found = known.get(self.path)
        self._send(404 if found is None else 200, _json({} if found is None else found))

    def do_POST(self) -> None:
        """Answer a completion."""
        length = int(self.headers.get("content-length") or 0)
        if not 0 < length <= LARGEST_REQUEST:
            self._send(413, _json({"error": "no body, or too large a one"}))
            return
        body = self.rfile.read(length)
        prefix = "" if self.fake.model.kind == "hamster" else "/v1"
        if self.path != f"{prefix}/chat/completions":
            self._send(404, _json({"detail": "Not Found"}))
            return
        reply = self.fake.reply(body)
        if reply is None:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self._send(*reply)

    def _send(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the terminal quiet."""
