"""Decides which requests are answered at all, and what browsers may do with the answers.

A page of another site can send requests to a server on this computer, and a domain name can be made to point to it. So
the names by which the server may be called, and the pages that may send it something, are checked.
"""

import asyncio
import ipaddress
import re
import secrets
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie

from starlette.datastructures import Headers, MutableHeaders, QueryParams
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
DRAINED = 4  # times the limit of a body: so much of a larger body is read before the answer
HOST = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([\w.-]+))(?::(\d+))?", re.ASCII)
HEADERS = (
    (
        "content-security-policy",
        "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; form-action 'self'; "
        "frame-ancestors 'none'",
    ),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
)


def is_loopback(host: str) -> bool:
    """Whether only this computer reaches an address that a server is bound to."""
    if host == "localhost":
        return True
    address = parse_ip(host)
    return address is not None and address.is_loopback


def parse_ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


@dataclass(frozen=True)
class Access:
    """Who may use the server.

    host: the address that it is bound to. token: what a client has to show; None where only this computer reaches the
    server. names: further names of this computer, which the Host header of a request may have.
    """

    host: str = "127.0.0.1"
    token: str | None = field(default=None, repr=False)
    names: tuple[str, ...] = ()

    @classmethod
    def to(cls, host: str, token: str | None = None) -> "Access":
        """Access to a server that is bound to a host. Anything but this computer needs a token, which is drawn."""
        if is_loopback(host):
            return cls(host, token)
        return cls(host, token or secrets.token_urlsafe(24), (socket.gethostname().lower(), socket.getfqdn().lower()))

    def allows_host(self, header: str | None) -> bool:
        """Whether a request may call the server by this name.

        A server that others reach may be called by any address, which no other site can make to point elsewhere.
        """
        match = HOST.fullmatch(header or "")
        if match is None:
            return False
        name = (match[1] or match[2]).lower()
        if name in LOOPBACK_NAMES or name == self.host.lower() or name in self.names:
            return True
        return not is_loopback(self.host) and parse_ip(name) is not None

    def allows_token(self, token: str | None) -> bool:
        """Compares in a time that does not depend on the tokens."""
        return token is not None and secrets.compare_digest(token.encode(), (self.token or "").encode())


def is_foreign(headers: Headers, method: str) -> bool:
    """Whether a page of another origin sends the request. A link to this server, which a person follows, is none.

    Programs that are no browsers send no Origin.
    """
    if method == "GET" and headers.get("sec-fetch-mode") == "navigate":
        return False
    if headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
        return True
    host = headers.get("host", "").lower()
    return headers.get("origin", f"http://{host}").lower() not in (f"http://{host}", f"https://{host}")


class Guard:
    """The outermost layer of the server.

    access: who may use it. limits: the path of a request -> the most bytes of its body, "" for all others. seconds: for
    a body to arrive.
    """

    def __init__(self, app: ASGIApp, access: Access, limits: Mapping[str, int], seconds: float):
        self.app, self.access, self.limits, self.seconds = app, access, limits, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit = self.limits.get(scope["path"], self.limits[""])
        body = Body(receive, limit, self.seconds)

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS:
                    headers[name] = value
                headers.setdefault("cache-control", "no-store")
                if message["status"] == 413:
                    headers["connection"] = "close"
                    await body.drain()
            await send(message)

        refusal = self.refusal(scope, limit)
        if refusal is not None:
            await refusal(scope, receive, send_guarded)
        else:
            await self.app(scope, body, send_guarded)

    def refusal(self, scope: Scope, limit: int) -> Response | None:
        """The answer to a request that goes no further; None for all others."""
        headers = Headers(scope=scope)
        if not self.access.allows_host(headers.get("host")):
            return error_response(400, "the server is not called by this name: open the address that it has printed")
        if is_foreign(headers, scope["method"]):
            return error_response(403, "the request comes from a page of another site")
        if self.access.token is not None and (answer := self.ask_for_token(scope, headers)) is not None:
            return answer
        length = headers.get("content-length", "0")
        if not length.isdecimal() or len(length) > 15 or int(length) > limit:
            return error_response(413, too_large(limit))
        return None

    def ask_for_token(self, scope: Scope, headers: Headers) -> Response | None:
        """What a client gets who does not show the token: an error, or the cookie if the address has the token."""
        name = f"minip2p-{(scope.get('server') or ('', 0))[1]}"  # cookies do not know ports
        authorization = headers.get("authorization", "")
        if self.access.allows_token(cookie(headers, name)):
            return None
        if self.access.allows_token(authorization.removeprefix("Bearer ")):
            return None
        if scope["method"] == "GET" and self.access.allows_token(QueryParams(scope["query_string"]).get("token")):
            response = RedirectResponse("/", 303)
            response.set_cookie(name, self.access.token or "", httponly=True, samesite="lax")
            return response
        return error_response(401, "this server needs its token: open the address that it has printed")


def cookie(headers: Headers, name: str) -> str | None:
    """The value of a cookie."""
    try:
        morsel = SimpleCookie(headers.get("cookie", "")).get(name)
    except CookieError:
        return None
    return None if morsel is None else morsel.value


class Body:
    """The body of a request as it arrives: at most `limit` bytes, whatever its header says, within so many seconds."""

    def __init__(self, receive: Receive, limit: int, seconds: float):
        self.receive, self.limit = receive, limit
        self.deadline = asyncio.get_running_loop().time() + seconds
        self.size, self.is_whole = 0, False

    async def __call__(self) -> Message:
        """The next message of the client. Raises HTTPException."""
        if self.is_whole:  # what follows is the client's leaving
            return await self.receive()
        try:
            message = await self.read()
        except TimeoutError:
            raise HTTPException(408, "the request did not arrive in time") from None
        if self.size > self.limit:
            raise HTTPException(413, too_large(self.limit))
        return message

    async def read(self) -> Message:
        async with asyncio.timeout_at(self.deadline):
            message = await self.receive()
        self.size += len(message.get("body", b""))
        self.is_whole = not message.get("more_body", False)
        return message

    async def drain(self) -> None:
        """Reads a body that is too large and forgets it, up to a limit: a client that still sends reads no answer."""
        with suppress(TimeoutError):
            while not self.is_whole and self.size < DRAINED * self.limit:
                await self.read()


def too_large(limit: int) -> str:
    return f"the request is too large: {limit / 1e6:g} MB are the most"


def error_response(status: int, error: str, **more: int) -> JSONResponse:
    """An error as all of them are: one line."""
    return JSONResponse({"error": " ".join(error.split()), **more}, status)
