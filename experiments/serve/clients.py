"""Clients of every kind at once at a server process of its own.

Each client is a coroutine that draws one kind of request after the other: whole, streamed, two
answers, log-probabilities, a stop string, a long prompt, one that leaves in mid-stream, one that
reads slowly, one that errs. Prompts begin alike and are drawn from a few, with fixed seeds, so that
every text can be held against the first of its kind.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.common import record
from experiments.common.command import Asked

OPENING = "First Citizen:\nBefore we proceed any further, hear me speak.\n\n"
PROMPTS = (OPENING, OPENING + "All:\n", OPENING + "MENENIUS:\nWhat", "ROMEO.", "To be, or not to")
KINDS = ("whole", "stream", "two", "logprobs", "stop", "long", "leave", "slow", "err")
WRONG: tuple[tuple[bytes, int], ...] = (
    (b"{", 400), (b'{"model": "other", "prompt": "a"}', 404), (b'{"model": "m"}', 400),
    (b'{"model": "m", "prompt": "a", "temperature": NaN}', 400),
    (b'{"model": "m", "prompt": "a", "max_tokens": 10000000}', 400),
    (b'{"model": "m", "prompt": "' + b"a" * 100_000 + b'"}', 400))


@dataclass
class Seen:
    """Answers as the clients saw them."""

    asked: Counter = field(default_factory=Counter)
    fine: Counter = field(default_factory=Counter)
    busy: Counter = field(default_factory=Counter)
    odd: list[str] = field(default_factory=list)
    texts: dict[str, Counter] = field(default_factory=lambda: defaultdict(Counter))
    first_s: list[float] = field(default_factory=list)
    tokens: int = 0


def main(asked: Asked) -> None:
    """Run a server, its clients, and write the record."""
    clients, seconds = asked.values["clients"], asked.values["seconds"]
    if asked.is_quick:
        clients, seconds = 8, 5
    with tempfile.TemporaryDirectory() as place:
        folder = asked.values["folder"] or train(Path(place) / "run")
        flags = ["--port", "0", "--name", "m", "--queue", str(clients * 2)]
        with subprocess.Popen([sys.executable, "-m", "dsjax", "serve", folder, *flags],
                              cwd=record.ROOT, stdout=subprocess.PIPE, text=True) as server:
            try:
                rows = measure(server, clients, seconds)
            finally:
                server.kill()
    asked.write("clients", f"{clients} clients of every kind for {seconds} s leave nothing behind",
                ("what", "number"), rows)


def train(folder: Path) -> str:
    """A run of a few steps."""
    subprocess.run([sys.executable, "-m", "dsjax", "train", "tiny", "--train.steps", "20",
                    "--output.folder", str(folder)], cwd=record.ROOT, check=True,
                   stdout=subprocess.DEVNULL)
    return str(folder)


def measure(server: subprocess.Popen, clients: int, seconds: float) -> list[list[Any]]:
    """Rows of the record."""
    assert server.stdout is not None, "a pipe"
    found = re.search(r"127\.0\.0\.1:(\d+)$", server.stdout.readline())
    assert found is not None, "a server tells its address"
    port, seen = int(found[1]), Seen()
    before = resident(server.pid)
    start = time.perf_counter()
    asyncio.run(crowd(port, clients, seconds, seen))
    wall = time.perf_counter() - start
    numbers = asyncio.run(idle(port))
    after = resident(server.pid)
    server.send_signal(signal.SIGTERM)
    status = server.wait(60)
    for line in seen.odd[:20]:
        print("odd:", line, flush=True)
    first = sorted(seen.first_s)
    rows: list[list[Any]] = [
        [f"{kind}: asked, as it should be, told to come later",
         f"{seen.asked[kind]:,}, {seen.fine[kind]:,}, {seen.busy[kind]:,}"] for kind in KINDS]
    asked, steps = sum(map(Counter.total, seen.texts.values())), numbers["steps_total"]
    host, whole = (numbers[f"{part}_seconds_total"] / steps * 1e3 for part in ("host", "step"))
    several = sum(len(texts) > 1 for texts in seen.texts.values())
    rows += [
        ["requests of equal prompt, seed and form", f"{asked:,}"],
        ["of them, forms with more than one text", f"{several} of {len(seen.texts)}"],
        ["tokens a second that clients got", f"{seen.tokens / wall:,.0f}"],
        ["first token, median and 99 %", f"{statistics.median(first):.2f} s, "
                                         f"{first[int(len(first) * 0.99)]:.2f} s"],
        ["prompt tokens found in pages", f"{numbers['cached_tokens_total']:,.0f} of "
                                         f"{numbers['prompt_tokens_total']:,.0f}"],
        ["running, waiting at the end", f"{numbers['running']:.0f}, {numbers['waiting']:.0f}"],
        ["pages owned at the end", f"{numbers['pages_owned']:.0f}"],
        ["host's part of a step", f"{host:.2f} ms of {whole:.2f} ms"],
        ["resident memory before and after", f"{before / 1e6:,.0f} MB, {after / 1e6:,.0f} MB"],
        ["status after SIGTERM", status],
    ]
    return rows


async def crowd(port: int, clients: int, seconds: float, seen: Seen) -> None:
    """All clients, each asking until the time is over."""
    end = time.monotonic() + seconds

    async def one(number: int) -> None:
        rng = random.Random(number)
        while time.monotonic() < end:
            kind = rng.choice(KINDS)
            seen.asked[kind] += 1
            try:
                async with asyncio.timeout(300):
                    await ask(port, kind, rng, seen)
            except (OSError, TimeoutError, ValueError) as error:
                seen.odd.append(f"{kind}: {type(error).__name__} {error}"[:200])

    await asyncio.gather(*(one(number) for number in range(clients)))


async def ask(port: int, kind: str, rng: random.Random, seen: Seen) -> None:
    """One request, held against what should come."""
    body = {"model": "m", "prompt": rng.choice(PROMPTS), "seed": rng.randrange(4), "max_tokens": 24}
    more: dict[str, Any] = {
        "stream": {"stream": True}, "leave": {"stream": True, "max_tokens": 60},
        "slow": {"stream": True}, "two": {"n": 2}, "logprobs": {"logprobs": 3},
        "stop": {"stop": ["e", "\n"]}, "long": {"prompt": OPENING * 2, "max_tokens": 4},
    }.get(kind, {})
    body |= more
    data, wanted = json.dumps(body).encode(), 200
    if kind == "err":
        data, wanted = rng.choice(WRONG)
    start = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
                     b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(data))
        writer.write(data)
        await writer.drain()
        head = await reader.readuntil(b"\r\n\r\n")
        status = int(head.split()[1])
        if status == 503 and wanted == 200:
            seen.busy[kind] += 1
            await asyncio.sleep(rng.random())
            return
        if status != wanted:
            raise ValueError(f"status {status}: {(await reader.read(300))!r}")
        if kind == "leave":
            await reader.read(rng.randrange(1, 2000))
            seen.fine[kind] += 1
            return
        raw = await read(reader, is_slow=kind == "slow", start=start, seen=seen,
                         is_streamed=bool(body.get("stream")))
    finally:
        writer.close()
    check(kind, head, raw, body, seen)


async def read(reader: asyncio.StreamReader, is_slow: bool, start: float, seen: Seen,
               is_streamed: bool) -> bytes:
    """All of an answer, a few bytes at a time where the client is slow."""
    raw = b""
    while piece := await reader.read(200 if is_slow else 1 << 16):
        if not raw and is_streamed:
            seen.first_s.append(time.perf_counter() - start)
        raw += piece
        if is_slow:
            await asyncio.sleep(0.02)
    return raw


def check(kind: str, head: bytes, raw: bytes, body: dict[str, Any], seen: Seen) -> None:
    """Hold an answer against the first of its form."""
    if kind == "err":
        assert json.loads(raw)["error"].keys() == {"message", "type", "param", "code"}
    elif body.get("stream"):
        lines = [line for line in plain(head, raw).split("\n\n") if line.startswith("data: ")]
        if lines[-1] != "data: [DONE]":
            raise ValueError(f"a stream ends with {lines[-1][:80]!r}")
        chunks = [json.loads(line[6:]) for line in lines[:-1]]
        note(kind, body, ["".join(chunk["choices"][0]["text"] for chunk in chunks)], seen)
        seen.tokens += len(chunks)
    else:
        said = json.loads(raw)
        note(kind, body, [choice["text"] for choice in said["choices"]], seen)
        seen.tokens += said["usage"]["completion_tokens"]
    seen.fine[kind] += 1


def plain(head: bytes, raw: bytes) -> str:
    """A body without the marks of its chunks."""
    if b"chunked" not in head.lower():
        return raw.decode()
    made = b""
    while raw:
        size, _, raw = raw.partition(b"\r\n")
        length = int(size, 16)
        made, raw = made + raw[:length], raw[length + 2:]
    return made.decode()


def note(kind: str, body: dict[str, Any], texts: Sequence[str], seen: Seen) -> None:
    """Keep a text by its form: streamed or not, scored or not, a prompt and a seed have one."""
    form = kind if kind in ("two", "stop", "long") else "one"
    seen.texts[f"{form} {body['prompt']!r} {body['seed']}"][json.dumps(texts)] += 1


async def idle(port: int) -> dict[str, float]:
    """The server's numbers once nothing runs, or after a minute."""
    for _ in range(600):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        text = (await reader.read()).decode()
        writer.close()
        found = re.findall(r"^dsjax_(\w+) (\S+)$", text, re.M)
        numbers = {name: float(value) for name, value in found}
        if not numbers["running"] + numbers["waiting"]:
            break
        await asyncio.sleep(0.1)
    return numbers


def resident(pid: int) -> int:
    """Bytes of memory that a process has."""
    words = Path(f"/proc/{pid}/statm").read_text().split()
    return int(words[1]) * 4096
