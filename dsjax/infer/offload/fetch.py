"""Experts on their way from a store to the device: those that are needed, and those that will be.

Threads read; nothing of it needs the interpreter for long. What is expected is read and sent ahead,
while the device computes the layer before; at most `ahead` experts are under way or wait on the
device, those included that turned out not to be wanted and are still being read. What is needed now
and was not expected is read by the same threads, a few at a time, and sent one by one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any

import jax

from dsjax.infer.offload.slots import Key
from dsjax.infer.offload.store import Store
from dsjax.layers.swiglu import SwiGLUParams

WORKERS = 2  # reading and transposing release the interpreter


class Fetcher:
    """The way from a store to the device that programs run on."""

    def __init__(self, store: Store, ahead: int) -> None:
        """Start threads; `ahead` is how many experts may be under way before they are needed."""
        self._store, self._most = store, ahead
        self._threads = ThreadPoolExecutor(WORKERS, thread_name_prefix="experts")
        self._ahead: dict[Key, Future[SwiGLUParams]] = {}
        self._dropped: list[Future[SwiGLUParams]] = []

    @property
    def ahead(self) -> Collection[Key]:
        """Keys that are under way or on the device, and not taken yet."""
        return self._ahead.keys()

    def expect(self, keys: Iterable[Key]) -> None:
        """Begin to fetch keys, the first ones first, as far as there is room for them."""
        self._dropped = [made for made in self._dropped if not made.done()]
        room = self._most - len(self._ahead) - len(self._dropped)
        for key in islice((key for key in keys if key not in self._ahead), max(room, 0)):
            self._ahead[key] = self._threads.submit(self._send, key)

    def take(self, keys: Collection[Key]) -> Iterator[tuple[Key, SwiGLUParams]]:
        """Yield keys with their matrices on the device; what else was expected is given up."""
        for key in [key for key in self._ahead if key not in keys]:
            made = self._ahead.pop(key)
            if not made.cancel() and not made.done():
                self._dropped.append(made)
        there = [key for key in keys if key in self._ahead]
        waiting = deque(key for key in keys if key not in self._ahead)
        reading: deque[tuple[Key, Future[Any]]] = deque()

        def read_on() -> None:
            while waiting and len(reading) <= WORKERS:
                reading.append((waiting[0], self._threads.submit(self._store.read, waiting[0])))
                waiting.popleft()

        try:
            read_on()
            for key in there:
                yield key, self._ahead.pop(key).result()
            while reading:
                key, made = reading.popleft()
                read_on()
                yield key, jax.device_put(made.result())
        finally:
            for _, made in reading:
                made.cancel()

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(cancel_futures=True)

    def _send(self, key: Key) -> SwiGLUParams:
        return jax.device_put(self._store.read(key))
