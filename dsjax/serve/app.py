"""Routes of the door: keys and limits first, then a request's tokens as JSON or as events.

Every refusal has OpenAI's error shape. A client that leaves, or that takes nothing for SEND_S
seconds, costs the engine nothing more: whatever ends a request runs through `Door.end`.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dsjax.serve import answers, metrics, schema
from dsjax.serve.answers import Form
from dsjax.serve.choice import Request
from dsjax.serve.door import Door
from dsjax.serve.refusal import Refusal, busy

READ_S, SEND_S, KEEP_ALIVE_S = 30.0, 60.0, 15.0
"""Seconds for a body to come, for a client to take a piece, and between signs of life."""
LEFT = 499
"""Status of a request whose client left; nobody reads it."""
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")

Answer = Callable[[dict[str, Any]], Awaitable[tuple[Request, Form]]]


def make(door: Door, keys: Sequence[str] = (), is_local: bool = False) -> ASGIApp:
    """Return the ASGI application.

    keys: one of them is asked for under /v1, if there are any. is_local: names of other hosts than
    loopback's are refused where there is no key, so that no web page reaches a local server through
    a name that it lets point here.
    """
    async def models(request: HTTPRequest) -> Response:
        return _json({"object": "list", "data": [_model(door)]})

    async def model(request: HTTPRequest) -> Response:
        if request.path_params["name"] != door.name:
            raise Refusal(f"The model {request.path_params['name'][:60]!r} does not exist; this "
                          f"server has {door.name}", "model", "model_not_found", 404)
        return _json(_model(door))

    async def health(request: HTTPRequest) -> Response:
        if door.failure is not None:
            raise Refusal("the engine stopped", code="stopped", status=503)
        if door.is_closing:
            raise busy("the server is shutting down")
        return _json({"status": "ok"})

    async def numbers(request: HTTPRequest) -> Response:
        return Response(door.metrics.text(), media_type=metrics.CONTENT_TYPE)

    async def complete(request: HTTPRequest) -> Response:
        return await _answer(door, request, lambda body: door.complete(schema.completion(body)))

    async def chat(request: HTTPRequest) -> Response:
        return await _answer(door, request, lambda body: door.chat(schema.chat(body)))

    handlers: dict[Any, Any] = {Refusal: _refused, HTTPException: _not_found, Exception: _failed}
    app = Starlette(exception_handlers=handlers, routes=[
        Route("/", _page),
        Route("/health", health),
        Route("/metrics", numbers),
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", model),
        Route("/v1/completions", complete, methods=["POST"]),
        Route("/v1/chat/completions", chat, methods=["POST"]),
    ])
    return Gate(app, door, tuple(map(_digest, keys)), is_local)


@dataclass(frozen=True)
class Gate:
    """Gate that every request passes: the name of the host, the key, and at the end the count."""

    app: ASGIApp
    door: Door
    keys: tuple[bytes, ...]
    is_local: bool

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or let through and count the answer's status."""
        if scope["type"] != "http":
            return
        status = LEFT

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        path = scope["path"]
        try:
            refusal = self._refusal(HTTPRequest(scope))
            if refusal is not None:
                await _error(refusal)(scope, receive, counted)
            else:
                await self.app(scope, receive, counted)
        finally:
            known = path if path in KNOWN else "other"
            self.door.metrics.answers.labels(known, str(status)).inc()

    def _refusal(self, request: HTTPRequest) -> Refusal | None:
        if self.is_local and not self.keys:
            host = re.sub(r":\d+$", "", request.headers.get("host", "localhost"))
            if host.lower() not in LOOPBACK:
                return Refusal(f"this server listens on loopback and was asked for as "
                               f"{host[:60]!r}; ask for localhost, or give the server a key "
                               "(--api-key-file)", code="host", status=403)
        if self.keys and request.scope["path"].startswith("/v1"):
            scheme, _, key = request.headers.get("authorization", "").partition(" ")
            given = _digest(key.strip()) if scheme.lower() == "bearer" else b""
            fits = [hmac.compare_digest(given, known) for known in self.keys]
            if not any(fits):
                return Refusal("Incorrect API key provided; send the server's own as "
                               "Authorization: Bearer KEY", code="invalid_api_key", status=401,
                               headers={"WWW-Authenticate": "Bearer"})
        return None


KNOWN = ("/", "/health", "/metrics", "/v1/models", "/v1/completions", "/v1/chat/completions")


def _digest(key: str) -> bytes:
    """A key's hash: all have one length, so that comparing tells no length."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


async def _answer(door: Door, http: HTTPRequest, ask: Answer) -> Response:
    """Queue what a body asks for, and answer whole or in events."""
    if door.failure is not None:
        raise Refusal("the engine stopped; the server's log says why", code="stopped", status=503)
    if door.is_closing:
        raise busy("the server is shutting down and takes no new requests; ask another")
    try:
        body = await _body(http, door.limits.body)
        request, form = await ask(schema.parse(body))
    except ClientDisconnect:
        return _Nothing()
    if request.is_streamed:
        return _Events(door, request, form)
    try:
        if not await _unless_left(http.receive, request.wait()):
            door.metrics.left.inc()
            return _Nothing()
        return _json(form.whole(request))
    finally:
        door.end(request)


async def _body(http: HTTPRequest, limit: int) -> bytes:
    """The bytes of a body, within the limit and in time."""
    kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refusal(f"the body is of type {kind[:60]!r}; send JSON with Content-Type: "
                      "application/json", status=415)
    large = Refusal(f"the body has more than {limit:,} bytes; send less", status=413,
                    headers={"Connection": "close"})
    length = http.headers.get("content-length", "0")
    if not length.isdecimal() or len(length) > 18 or int(length) > limit:
        raise large
    body = bytearray()
    try:
        async with asyncio.timeout(READ_S):
            async for piece in http.stream():
                body += piece
                if len(body) > limit:
                    raise large
    except TimeoutError:
        raise Refusal(f"the body did not come within {READ_S:.0f} s; send it faster", status=408,
                      headers={"Connection": "close"}) from None
    return bytes(body)


async def _unless_left(receive: Receive, work: Awaitable[None]) -> bool:
    """Await the work; False, with the work given up, where the client leaves first."""
    async def left() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(left())
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
            return True
        return False
    finally:
        for task in (working, leaving):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task


class _Events(Response):
    """The stream of a request's news."""

    def __init__(self, door: Door, request: Request, form: Form) -> None:
        super().__init__(media_type="text/event-stream", headers={
            "Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self.door, self.request, self.form = door, request, form

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream, to its end or the client's."""
        async def stream() -> None:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for piece in _events(self.request, self.form):
                async with asyncio.timeout(SEND_S):
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})

        try:
            if not await _unless_left(receive, stream()):
                self.door.metrics.left.inc()
        except TimeoutError:
            self.door.metrics.left.inc()
            self.door.drop(scope["client"])
        finally:
            self.door.end(self.request)


async def _events(request: Request, form: Form) -> AsyncIterator[bytes]:
    """The bytes of a stream: chunks as they come, signs of life, and the end."""
    if opening := form.opening(request):
        yield b"".join(map(answers.event, opening))
    told = 0
    while told < len(request.choices):
        try:
            async with asyncio.timeout(KEEP_ALIVE_S):
                news = await request.news()
        except TimeoutError:
            yield answers.KEEP_ALIVE
            continue
        chunks: list[dict[str, Any]] = []
        for choice, piece in news:
            if choice.error is not None:
                chunks.append(Refusal(choice.error, code="server_error", status=500).body())
                yield b"".join(map(answers.event, chunks)) + answers.DONE
                return
            told += choice.is_told
            chunks += form.chunks(choice, piece)
        if told == len(request.choices):
            chunks += form.closing(request)
        if chunks:
            yield b"".join(map(answers.event, chunks))
    yield answers.DONE


class _Nothing(Response):
    """The answer to a client that has left."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send nothing that anyone would read."""
        with contextlib.suppress(OSError):
            await send({"type": "http.response.start", "status": LEFT, "headers": []})
            await send({"type": "http.response.body", "body": b""})


def _json(data: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(answers.dumps(data), status, headers, media_type="application/json")


def _error(refusal: Refusal) -> Response:
    return _json(refusal.body(), refusal.status, refusal.headers)


async def _refused(_: HTTPRequest, error: Exception) -> Response:
    assert isinstance(error, Refusal), "the kind this handler is for"
    return _error(error)


async def _not_found(request: HTTPRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException), "the kind this handler is for"
    said = f"{request.method} {request.scope['path'][:60]!r} is not served here ({error.detail})"
    return _error(Refusal(f"{said}; see /v1/models, /v1/completions, /v1/chat/completions",
                          status=error.status_code, headers=dict(error.headers or {})))


async def _failed(_: HTTPRequest, error: Exception) -> Response:
    return _error(Refusal("the server failed; its log says why", code="server_error", status=500))


def _model(door: Door) -> dict[str, Any]:
    return {"id": door.name, "object": "model", "created": STARTED, "owned_by": "dsjax",
            "max_model_len": door.engine.max_len, "has_chat_template": door.template is not None}


STARTED = int(time.time())
PAGE = resources.files("dsjax.serve").joinpath("page.html").read_text(encoding="utf-8")
_INLINE = re.findall(r"<(script|style)>(.*?)</\1>", PAGE, re.DOTALL)


async def _page(_: HTTPRequest) -> Response:
    return Response(PAGE, media_type="text/html", headers={"Content-Security-Policy": _policy()})


def _policy() -> str:
    """A policy under which the page runs its own script and talks to this server, no more."""
    hashes = {tag: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
              for tag, text in _INLINE}
    return ("default-src 'none'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
            "frame-ancestors 'none'; "
            + "; ".join(f"{tag}-src 'sha256-{digest}'" for tag, digest in hashes.items()))
