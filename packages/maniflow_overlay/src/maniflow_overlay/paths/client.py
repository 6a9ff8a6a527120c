"""One call of a model server: what is sent, what comes back, and whose fault a failure is.

Two kinds of servers answer: `hamster` is HAMSTER's own (POST /chat/completions, content as a list
of parts, one request at a time), `openai` is what vLLM and SGLang speak (POST /v1/chat/completions,
content as text, many requests at a time). Both forms of content are read from both.
"""

from __future__ import annotations

import base64
import ipaddress
import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx
from loom.errors import UserError

from maniflow_overlay.paths.grammar import Status
from maniflow_overlay.paths.prompts import Asking

_PATHS = {"hamster": "/chat/completions", "openai": "/v1/chat/completions"}
_LIMITS = {"hamster": 1, "openai": 16}
_BUSY = (429, 503)
_REFUSALS = (401, 403, 404, 405, 422)  # about the request's form, the same for every frame


@dataclass(frozen=True)
class Endpoint:
    """A server.

    Attributes:
        kind: `hamster` or `openai`.
        url: Up to and without the path.
        limit: Calls at a time.
    """

    kind: str
    url: str
    limit: int


@dataclass(frozen=True)
class Reply:
    """What a server answered."""

    text: str
    finish_reason: str | None


class CallError(Exception):
    """A call that brought no answer, for a reason that may pass; the frame is charged with it."""

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(message)
        self.status = status


class UnavailableError(Exception):
    """The endpoint takes no calls now: nobody listens, or it says that it is busy."""


class RefusedError(Exception):
    """The server will refuse every frame: wrong model name, wrong path, no permission."""


def parse_endpoint(text: str) -> Endpoint:
    """Read `KIND=URL` or `KIND=URL,limit=N`.

    Raises:
        UserError: It is neither.
    """
    kind, _, rest = text.partition("=")
    url, _, option = rest.partition(",limit=")
    parts = urlsplit(url)
    number = option if option else str(_LIMITS.get(kind, 1))
    valid = kind in _PATHS and parts.scheme in ("http", "https") and parts.hostname
    if not valid or not number.isdecimal() or not 1 <= int(number) <= 1024:
        raise UserError(
            f"endpoint {text!r} cannot be read",
            hint="KIND=URL or KIND=URL,limit=N, as in hamster=http://127.0.0.1:8000 "
            "or openai=http://127.0.0.1:8010,limit=16",
        )
    url = url.rstrip("/")
    if kind == "openai":  # clients of OpenAI are given the address with /v1
        url = url.removesuffix("/v1")
    return Endpoint(kind, url, int(number))


def is_loopback(url: str) -> bool:
    """Whether a URL names this machine; proxies and certificate settings do not concern it then."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def request_body(
    asking: Asking, question: str, jpeg: bytes, *, max_tokens: int, temperature: float
) -> dict[str, Any]:
    """Return the JSON of one call: the picture first, then the text, as HAMSTER was trained."""
    picture = "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
    content = [
        {"type": "image_url", "image_url": {"url": picture}},
        {"type": "text", "text": question},
    ]
    return {
        "model": asking.model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": asking.top_p,
    }


def read_reply(content: bytes) -> Reply:
    """Take the text out of a server's JSON.

    Raises:
        CallError: There is none.
    """
    try:
        choice = json.loads(content)["choices"][0]
        said = choice["message"]["content"]
        if isinstance(said, list):
            said = "".join(part["text"] for part in said if part.get("type") == "text")
        if said is None:
            said = ""
        if not isinstance(said, str):
            raise TypeError(f"content is a {type(said).__name__}")
        reason = choice.get("finish_reason")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise CallError(Status.SERVER_ERROR, f"an answer of another form: {error!r}") from error
    return Reply(said, reason if isinstance(reason, str) else None)


class Client:
    """Calls one endpoint."""

    def __init__(self, endpoint: Endpoint, timeout_s: float) -> None:
        """Open no connection yet."""
        self.endpoint = endpoint
        self._address = endpoint.url + _PATHS[endpoint.kind]
        self._http = httpx.AsyncClient(
            timeout=httpx.Timeout(timeout_s, connect=min(timeout_s, 10.0)),
            limits=httpx.Limits(max_connections=endpoint.limit),
            trust_env=not is_loopback(endpoint.url),
            # Without TLS no certificates are looked for: a stale SSL_CERT_FILE does no harm.
            verify=endpoint.url.startswith("https:"),
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def call(self, body: bytes) -> Reply:
        """Send a request body and wait for the answer.

        Raises:
            UnavailableError: Nobody listens, or the server is busy.
            RefusedError: Every call would be refused.
            CallError: Anything else.
        """
        headers = {"content-type": "application/json"}
        try:
            response = await self._http.post(self._address, content=body, headers=headers)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise UnavailableError(str(error) or type(error).__name__) from error
        except httpx.TimeoutException as error:
            raise CallError(Status.TIMEOUT, type(error).__name__) from error
        except httpx.HTTPError as error:
            raise CallError(Status.SERVER_ERROR, f"{type(error).__name__}: {error}") from error
        if response.is_success:
            return read_reply(response.content)
        said = " ".join(response.text.split())[:300]
        message = f"{response.status_code} {response.reason_phrase}: {said}"
        if response.status_code in _REFUSALS:
            raise RefusedError(message)
        if response.status_code in _BUSY:
            raise UnavailableError(message)
        kind = Status.SERVER_ERROR if response.is_server_error else Status.HTTP_ERROR
        raise CallError(kind, message)
