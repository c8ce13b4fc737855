"""Meeting of processes that belong together: they wait for one another and say who is missing.

JAX's own client aborts the process without a word where another does not appear in time. So
all of them first meet here: the process numbered 0 listens where the coordinator will be, each of
the others says who it is, and when all are there each is sent on to JAX. What differs between them,
such as two with one number, is refused on the spot.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import time
from dataclasses import dataclass, field
from typing import Any

from dsjax.disk import cause
from dsjax.errors import UserError

SIGN, GO = "dsjax", "dsjax go"
RESOLVE_S = 10.0
"""Seconds until the first process gives up a name that stands for no address."""
LINE = 200  # bytes of a greeting or an answer, at most


def address(where: str) -> tuple[str, int]:
    """Host and port of HOST:PORT, where an IPv6 address stands in brackets."""
    host, _, port = where.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def wait(where: str, count: int, mine: int, seconds: float, bind: str | None = None) -> None:
    """Return once `count` processes are at HOST:PORT.

    mine: this one's number. bind: where the process with the number 0 listens, if not there.
    """
    until = time.monotonic() + seconds
    if mine == 0:
        _listen(bind or where, count, until, seconds)
    else:
        _visit(where, count, mine, until, seconds)


def listening(where: str) -> list[socket.socket]:
    """Sockets that listen on the addresses of HOST that are this machine's."""
    host, port = address(where)
    found, last = [], OSError("no address")
    for family, kind, protocol, _, place in resolve(host, port):
        opened = socket.socket(family, kind, protocol)
        try:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            opened.bind(place)
            opened.listen(128)
            found.append(opened)
        except OSError as error:
            opened.close()
            last = error
    if not found:
        raise UserError(
            f"process 0 cannot listen at {where} ({cause(last).lower()}); give an address of the "
            "machine that process 0 is on, and a port that is free")
    return found


def resolve(host: str, port: int, until: float | None = None) -> list[tuple[Any, ...]]:
    """Addresses of a host; a name may take a while to be known, as a new pod's."""
    until = time.monotonic() + RESOLVE_S if until is None else until
    while True:
        try:
            return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            if time.monotonic() > until:
                raise UserError(f"{host} stands for no address ({cause(error).lower()}); give the "
                                "name or address of the machine that process 0 is on") from None
        time.sleep(0.5)


@dataclass
class _Guests:
    """Processes that came to process 0, by their numbers."""

    count: int
    here: dict[int, socket.socket] = field(default_factory=dict)

    def greet(self, guest: socket.socket) -> None:
        """Hear who it is; strangers and processes that do not fit are sent away."""
        with contextlib.suppress(OSError, ValueError):
            guest.settimeout(5)
            sign, count, number = _line(guest).split(" ")
            if sign == SIGN:
                why = self._misfit(int(count), int(number))
                if why is None:
                    self.here[int(number)] = guest
                    return
                guest.sendall(f"{SIGN} {why}\n".encode())
        guest.close()

    def _misfit(self, count: int, number: int) -> str | None:
        if count != self.count:
            return f"process 0 was told of {self.count} processes and process {number} of {count}"
        if not 0 < number < count or number not in self.missing():
            return f"there is another process with the number {number}"
        return None

    def missing(self) -> list[int]:
        """Numbers of those that did not come, or have left again."""
        for number, guest in list(self.here.items()):
            if not _is_open(guest):
                self.here.pop(number).close()
        return [n for n in range(1, self.count) if n not in self.here]


def _listen(where: str, count: int, until: float, seconds: float) -> None:
    guests = _Guests(count)
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as ready:
        for opened in listening(where):
            stack.enter_context(opened)
            ready.register(opened, selectors.EVENT_READ)
        while missing := guests.missing():
            if time.monotonic() > until:
                _dismiss(guests, f"{SIGN} not all of {count} processes came to {where}")
                raise UserError(
                    f"{_named(missing, count)} did not come to {where} within "
                    f"{seconds:.0f} seconds; start all of them together, each with its own number")
            for key, _ in ready.select(timeout=0.2):
                assert isinstance(key.fileobj, socket.socket), "what was registered"
                guests.greet(key.fileobj.accept()[0])
    _dismiss(guests, GO)


def _dismiss(guests: _Guests, answer: str) -> None:
    for guest in guests.here.values():
        with contextlib.suppress(OSError):  # it has left; JAX will find out
            guest.settimeout(2)
            guest.sendall(f"{answer}\n".encode())
            guest.recv(1)  # it hangs up first, so that the port is free at once
        guest.close()


def _visit(where: str, count: int, mine: int, until: float, seconds: float) -> None:
    host, port = address(where)
    why = "nothing answers"
    while time.monotonic() < until:
        for family, kind, protocol, _, place in resolve(host, port, until):
            with contextlib.suppress(OSError), socket.socket(family, kind, protocol) as opened:
                opened.settimeout(5)
                opened.connect(place)
                opened.sendall(f"{SIGN} {count} {mine}\n".encode())
                opened.settimeout(max(until - time.monotonic(), 0) + 5)
                answer = _line(opened)
                if answer == GO:
                    return
                if answer.startswith(f"{SIGN} "):
                    raise UserError(f"{answer.removeprefix(SIGN)[1:]}; start every process with "
                                    "the same number of all and a number of its own")
                why = "what answers is not the first process of this run"
        time.sleep(0.3)
    raise UserError(f"process 0 was not found at {where} within {seconds:.0f} seconds ({why}); "
                    "start all processes together, process 0 on that machine")


def _is_open(guest: socket.socket) -> bool:
    """True while a process that waits is there; it sends no more than its greeting."""
    guest.setblocking(False)
    try:
        return guest.recv(1) != b""
    except OSError as error:
        return isinstance(error, BlockingIOError)


def _line(opened: socket.socket) -> str:
    """A line that the other side sends; empty where it hangs up."""
    said = b""
    while not said.endswith(b"\n") and len(said) < LINE:
        more = opened.recv(LINE - len(said))
        if not more:
            return ""
        said += more
    return said.decode("ascii", errors="replace").strip()


def _named(numbers: list[int], count: int) -> str:
    shown = ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")
    return f"process {shown} of {count}" if len(numbers) == 1 else f"processes {shown} of {count}"
