"""Steps as they end: their metrics, read from the device one step late, and the speed of the run.

The device must never wait for the host. The loop dispatches step n + 1 first and only then reads
the metrics of step n (`Delayed`), which by then are done or nearly so. A speed needs the moments at
which steps end, and reading late must not shift them: reading steps n and n + 1 right after each
other, as before an evaluation, would make a step of no length. So a step's end is the moment at
which its results are first seen to be there: when they were handed over, where the program ran in
the calling thread (as on the CPU), otherwise when waiting for them ended.

The speed is that of the last steps together, tokens over seconds by the wall, so it is never more
than what was computed. Left out are evaluations, saves, and steps that had to be compiled.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import jax

Tree = Any


@dataclass(frozen=True)
class Ended:
    """A step that is done: its number, its metrics as NumPy arrays, and its time by the clock."""

    step: int
    metrics: Tree
    began: float | None
    """Time of its dispatch; None when it was compiled first."""
    ended: float


class Delayed:
    """A queue of one: gives back a step's metrics when the next step has been dispatched."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._held: tuple[int, Tree, float | None, float | None] | None = None

    def push(self, step: int, metrics: Tree, began: float | None = None) -> Ended | None:
        """Hold a step's device metrics, dispatched at `began`; return the step before, if any."""
        arrays = [leaf for leaf in jax.tree.leaves(metrics) if isinstance(leaf, jax.Array)]
        for leaf in arrays:
            leaf.copy_to_host_async()
        is_ready = all(leaf.is_ready() for leaf in arrays)  # type: ignore[attr-defined]
        ended = self._clock() if is_ready else None
        earlier, self._held = self._held, (step, metrics, began, ended)
        return self._read(earlier)

    def flush(self) -> Ended | None:
        """Wait for the held step and return it: at the end, and before a checkpoint is saved."""
        held, self._held = self._held, None
        return self._read(held)

    def _read(self, held: tuple[int, Tree, float | None, float | None] | None) -> Ended | None:
        if held is None:
            return None
        step, metrics, began, ended = held
        values = jax.device_get(metrics)
        return Ended(step, values, began, self._clock() if ended is None else ended)


class Throughput:
    """Tokens and FLOPs a second over the last steps: sums over sums, never before two of them."""

    def __init__(self, window: int = 20, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._steps: deque[tuple[float, float, float]] = deque(maxlen=window)
        self._last: float | None = None  # when the step before ended, if nothing came between
        self._known: set[Hashable] = set()

    def begin(self, shape: Hashable) -> float | None:
        """Note the dispatch of a step of a batch's shape; None where it is compiled first."""
        is_known = shape in self._known
        self._known.add(shape)
        return self._clock() if is_known else None

    def tick(self, tokens: float, began: float | None, ended: float, flops: float = 0.0) -> None:
        """Count a step, from the end of the one before or, after a pause, from its dispatch.

        One that was compiled is not counted: the clock starts at its end.
        """
        if began is not None:
            start = began if self._last is None else self._last
            self._steps.append((tokens, flops, ended - start))
        self._last = ended

    def restart(self) -> None:
        """Leave out what happens until the next step (an evaluation, a save)."""
        self._last = None

    @property
    def tok_s(self) -> float:
        """Tokens a second; NaN before two steps were counted."""
        return self._over_seconds(sum(tokens for tokens, _, _ in self._steps))

    @property
    def flop_s(self) -> float:
        """Useful FLOPs a second; NaN before two steps were counted."""
        return self._over_seconds(sum(flops for _, flops, _ in self._steps))

    def eta(self, steps: int) -> float:
        """Seconds that `steps` more steps take at this pace, without evaluations."""
        pace = self._over_seconds(len(self._steps))
        return steps / pace if pace > 0 else math.nan

    def _over_seconds(self, amount: float) -> float:
        seconds = sum(s for _, _, s in self._steps)
        return amount / seconds if len(self._steps) > 1 and seconds > 0 else math.nan
