"""Who may speak to the server: whoever reaches it under a loopback name and knows the token.

The Host check defeats DNS rebinding: a web page that resolves its own name to 127.0.0.1 still
sends that name. No CORS header is ever sent, so a browser lets no other page read an answer.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Mapping

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dovetail.api import problems
from dovetail_jobs.errors import AuthError, UserError

BODY_LIMIT_BYTES = 2 * 2**20


class Guard:
    """ASGI middleware in front of every route: Host, then token, then the size of the body.

    `open_paths` need no token; everything else answers 401 before anything of the request is read.
    `body_limits` are the limits of paths that begin so, in bytes.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        token: str,
        open_paths: frozenset[str],
        body_limits: Mapping[str, int],
    ) -> None:
        if not token:
            raise ValueError("the server needs a token that is not empty")
        self._app = app
        self._expected = f"Bearer {token}".encode()
        self._open_paths = open_paths
        self._body_limits = body_limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if not is_loopback(headers.get("host", "")):
            refused = UserError(
                f"Host: {headers.get('host', '')}  is not this machine; "
                "reach the server as 127.0.0.1 or localhost, through a tunnel from elsewhere"
            )
            await problems.respond(refused)(scope, receive, send)
            return
        if scope["path"] not in self._open_paths and not self._knows_token(headers):
            refused_token = AuthError(
                "the token is missing or wrong; "
                "send `Authorization: Bearer …` with what the server's token file holds"
            )
            await problems.respond(refused_token)(scope, receive, send)
            return
        limits = (
            limit for begin, limit in self._body_limits.items() if scope["path"].startswith(begin)
        )
        await self._app(scope, _Limited(receive, next(limits, BODY_LIMIT_BYTES)), send)

    def _knows_token(self, headers: Headers) -> bool:
        given = headers.get("authorization", "").encode("utf-8", "surrogateescape")
        return hmac.compare_digest(given, self._expected)


class _Limited:
    """A request's body, refused once it is longer than the limit, whatever its headers say."""

    def __init__(self, receive: Receive, limit_bytes: int) -> None:
        self._receive, self._limit_bytes = receive, limit_bytes
        self._read_bytes = 0

    async def __call__(self) -> Message:
        message = await self._receive()
        self._read_bytes += len(message.get("body", b""))
        if self._read_bytes > self._limit_bytes:
            raise HTTPException(413, f"the body is longer than {self._limit_bytes} bytes")
        return message


def is_loopback(host: str) -> bool:
    """Whether a Host header names this machine: `127.0.0.1:8000`, `localhost`, `[::1]:8000`."""
    name = host.rpartition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]
    if name.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
