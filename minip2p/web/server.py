"""Runs the server on a socket until it is interrupted."""

import asyncio
import os
import socket
from collections.abc import Callable

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from minip2p.web.limits import Limits

STOP_SECONDS = 10  # for answers on their way when the server stops
HEAD_SECONDS = 10  # for the first request of a connection to begin


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to an address. port: 0 takes one that is free. Raises ValueError with one line."""
    if not 0 <= port < 2**16:
        raise ValueError(f"port must be a number from 0 to 65535, not {port}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise ValueError(f"host {host!r} is not known ({getattr(error, 'strerror', error)})") from None
    listener = socket.socket(family, kind, protocol)
    if os.name == "posix":  # else it would let two programs have the same port
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen()
    except OSError as error:
        listener.close()
        raise ValueError(
            f"port {port} of {host} cannot be used ({error.strerror}): stop what uses it, or choose another port"
        ) from None
    return listener


class Connection(H11Protocol):
    """A connection, closed where nobody asks anything: only so many are open at once."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.loop.call_later(HEAD_SECONDS, self.close_if_silent)

    def close_if_silent(self) -> None:
        if self.cycle is None:  # no head of a request has arrived
            self.transport.close()  # type: ignore[unreachable]


class AppServer(uvicorn.Server):
    """uvicorn, which ends the jobs of the model before it waits for the answers on their way.

    on_start: called when the server answers.
    """

    def __init__(self, app: Starlette, limits: Limits, on_start: Callable[[], None] = lambda: None):
        config = uvicorn.Config(
            app,
            loop="asyncio",
            http=Connection,
            ws="none",
            lifespan="on",
            log_config=None,
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=limits.connections,
            timeout_graceful_shutdown=STOP_SECONDS,
        )
        super().__init__(config)
        self.app, self.on_start = app, on_start

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.on_start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.app.state.site.worker.close()
        await super().shutdown(sockets)
