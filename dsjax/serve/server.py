"""The process of the door: one thread steps the engine, the main one answers, signals end both.

The first SIGTERM or ctrl-C lets running requests finish and refuses new ones with 503; then `serve`
returns. A second one ends the process at once. An engine that raises ends every request with an
error, and `serve` raises what it raised.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

import uvicorn

from dsjax.disk import cause
from dsjax.errors import UserError, say
from dsjax.serve import app
from dsjax.serve.door import Door, Served
from dsjax.serve.protocol import Engine

CLOSING_S = 10
"""Seconds that clients have to read the ends of their answers when the server closes."""
SIGNALS = (signal.SIGTERM, signal.SIGINT)
OnReady = Callable[[str, Door], None]
"""Called with the URL once clients are heard, and with the door."""


def listen(host: str, port: int) -> socket.socket:
    """Take an address before a model is loaded; port 0 is any that is free."""
    with contextlib.ExitStack() as opened:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            taken = opened.enter_context(socket.socket(found[0][0], socket.SOCK_STREAM))
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taken.bind(found[0][4])
        except (OSError, OverflowError, UnicodeError) as error:
            raise UserError(f"{host}:{port} cannot be listened on ({cause(error)}); choose another "
                            "--host or --port") from None
        opened.pop_all()
        return taken


def serve(engine: Engine, served: Served, at: socket.socket,
          on_ready: OnReady = lambda address, door: None) -> None:
    """Answer at an address until a signal comes, or until `is_closing` is set on the door."""
    asyncio.run(_serve(engine, served, at, on_ready))


async def _serve(engine: Engine, served: Served, at: socket.socket,
                 on_ready: OnReady) -> None:
    door = Door(engine, served)
    loop, until = asyncio.get_running_loop(), threading.Event()

    def run() -> None:
        try:
            engine.run(until)
        except BaseException as failure:  # a thread's end is silent, and all would wait for ever
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(door.fail, failure)

    thread = threading.Thread(target=run, name="engine", daemon=True)
    thread.start()
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # bad clients fill no log
    is_local = at.getsockname()[0] in ("127.0.0.1", "::1")
    config = uvicorn.Config(
        app.make(door, served.keys, is_local), http="h11", ws="none", lifespan="off",
        log_config=None, access_log=False, server_header=False,
        timeout_graceful_shutdown=CLOSING_S)
    server = _Server(config, door, lambda: on_ready(url(at), door))
    try:
        await server.serve(sockets=[at])
    finally:
        until.set()
        await asyncio.to_thread(thread.join, CLOSING_S)
    if door.failure is not None:
        raise door.failure


def url(at: socket.socket) -> str:
    """The address as a browser takes it."""
    host, port = at.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Server(uvicorn.Server):
    """uvicorn's server, which finishes what runs before it stops listening."""

    def __init__(self, config: uvicorn.Config, door: Door, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._door, self._on_ready, self._is_told = door, on_ready, False
        door.drop = self._drop

    async def startup(self, sockets: Sequence[socket.socket] | None = None) -> None:
        await super().startup(sockets=None if sockets is None else list(sockets))
        self._on_ready()

    async def on_tick(self, counter: int) -> bool:
        running = len(self._door.active)
        if self._door.is_closing and running and not self._is_told:
            self._is_told = True  # not by the handler: it may have come amidst another message
            say(f"dsjax: finishing {running} request{'s' * (running > 1)}; again ends at once")
        is_done = self._door.failure is not None or (
            self._door.is_closing and not running)
        return await super().on_tick(counter) or is_done

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Listen to signals meanwhile; the process goes on to its own end, with its own status."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Finish on the first signal, end on the second."""
        if self._door.is_closing:
            os._exit(128 + sig)
        self._door.is_closing = True

    def _drop(self, address: object) -> None:
        """Cut a connection whose client reads nothing: closing would wait for it."""
        for connection in list(self.server_state.connections):
            transport = getattr(connection, "transport", None)
            if transport is not None and getattr(connection, "client", None) == address:
                transport.abort()
