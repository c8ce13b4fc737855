"""Traces of chosen steps, for Perfetto or TensorBoard: what ran when, on the host and the devices.

`--profile 3` traces three steps once the program is compiled, `--profile 10:13` the steps 10 to 13,
counted as the display counts them. The trace lies under the run's folder in `profile`, as JAX lays
it out: `*.trace.json.gz` opens in ui.perfetto.dev, the folder in TensorBoard with its profile
plugin. Where several processes train, the first one traces itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from dsjax.config.fields import profiled
from dsjax.config.run import RunConfig

Say = Callable[[str], Any]
WARMING = 2
"""Steps of a process before a number of steps is traced: the first is compiled."""


class Profiler:
    """Starts a trace before a run's first chosen step and writes it after the last."""

    def __init__(self, steps: tuple[int, int] | None, folder: Path, say: Say) -> None:
        self._steps = steps if jax.process_index() == 0 else None
        self._folder, self._say = folder, say
        self._began: int | None = None
        self._taken = 0

    def step(self, number: int) -> contextlib.AbstractContextManager[Any]:
        """Begin a step; the trace marks what happens within as the step's."""
        if self._steps is not None and self._began is None and number >= self._steps[0]:
            if number > self._steps[1]:
                self._say(f"nothing is profiled: the run goes on with step {number}, and --profile "
                          f"names {self._steps[0]}:{self._steps[1]}")
                self._steps = None
            else:
                self._start(number)
        if self._began is None:
            return contextlib.nullcontext()
        return jax.profiler.StepTraceAnnotation("train", step_num=number)

    def took(self, number: int, results: Any) -> bool:
        """End a step; true when that was the last, and its trace has been written."""
        self._taken = number
        if self._began is None or self._steps is None or number < self._steps[1]:
            return False
        jax.block_until_ready(results)
        self.close()
        return True

    def close(self) -> None:
        """Write the trace of a run that ends or fails before its last chosen step; say which."""
        if self._began is None:
            if self._steps is not None:
                self._say(f"nothing is profiled: the run ended after step {self._taken}, before "
                          f"step {self._steps[0]}")
        else:
            jax.profiler.stop_trace()
            last = self._taken
            traces = sorted(self._folder.rglob("*.trace.json.gz"), key=lambda p: p.stat().st_mtime)
            which = f"step {last}" if last == self._began else f"steps {self._began} to {last}"
            self._say(f"profile of {which}: {traces[-1] if traces else self._folder} (open it in "
                      f"ui.perfetto.dev, or TensorBoard on {self._folder})")
        self._began = self._steps = None

    def _start(self, number: int) -> None:
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # a line for every call of Python would bury the programs
        jax.profiler.start_trace(str(self._folder), profiler_options=options)
        self._began = number


def once(run: RunConfig) -> RunConfig:
    """The run as its folder keeps it: the next start traces what it is asked to, not this again."""
    return dataclasses.replace(run, output=dataclasses.replace(run.output, profile=None))


def chosen(text: str | None, done: int, steps: int) -> tuple[int, int] | None:
    """The first and last step that a run with `done` steps behind it traces.

    A number of steps comes after the first two of this process, or before the run's end where it is
    nearer.
    """
    if text is None:
        return None
    asked = profiled(text)
    if isinstance(asked, tuple):
        return asked
    first = max(done + 1, min(done + 1 + WARMING, steps - asked + 1))
    return first, first + asked - 1
