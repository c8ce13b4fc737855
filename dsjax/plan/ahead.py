"""Compile a function for a machine that is not here, and say what came out.

The function is lowered for the target's platform alone, so that every choice by platform is the
target's, and compiled from shapes with shardings: nothing is allocated. A compiler that finds too
little memory stops and names the bytes; that is a result here, not an error.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import re
import resource
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax

from dsjax.errors import UserError
from dsjax.kernels import cudnn
from dsjax.plan import hlo
from dsjax.plan.hlo import Collective
from dsjax.plan.target import Target
from dsjax.runtime import compiler


@dataclass(frozen=True)
class Cost:
    """Cost of tracing, lowering and compiling here."""

    seconds: float
    cpu_seconds: float  # of all cores together
    peak_memory: int  # of this process so far, bytes


@dataclass(frozen=True)
class Compiled:
    """Result of compiling a step; bytes are of one device."""

    platform: str
    arguments: int
    outputs: int  # that no argument's memory is used for
    temporaries: int
    code: int
    peak: int  # of arguments, outputs and temporaries alive at once
    collectives: tuple[Collective, ...]
    options: dict[str, Any]
    cost: Cost
    text: str

    @property
    def attention(self) -> str:
        """The attention that the program holds: calls of a vendor's kernel, or plain blocks."""
        calls = self.text.count(f'custom_call_target="{cudnn.CALL}')
        backward = len(re.findall(rf'target="{re.escape(cudnn.CALL)}\w*Backward', self.text))
        if not calls:
            return "plain blocks"
        return f"cuDNN's, {calls - backward} calls forward and {backward} backward"

    @property
    def total(self) -> int:
        """Bytes of a device that the step needs.

        A GPU gets its temporaries as one block. A TPU's compiler places each buffer, refuses what
        does not fit, and adds up more temporaries than there is memory for steps that it accepts
        (V3's for 2,048 v5p: 121 GB of 103); its peak is what is alive at once.
        """
        if self.platform == "tpu":
            return self.peak + self.code
        return self.arguments + self.outputs + self.temporaries + self.code


@dataclass(frozen=True)
class Refused:
    """A step for which the compiler found too little memory; bytes are of one device."""

    needed: int
    limit: int
    cost: Cost


def compile_for(target: Target, step: Any, *args: Any) -> Compiled | Refused:
    """Compile a jitted step for abstract arguments whose shardings lie on the target's devices."""
    begin = time.perf_counter(), time.process_time()
    platform = target.chip.platform
    with cudnn.of_hopper() if platform == "cuda" else contextlib.nullcontext():
        lowered = step.trace(*args).lower(lowering_platforms=(platform,))
    asked = compiler.ahead(platform)
    while True:
        try:
            with trimmed():
                compiled = lowered.compile(compiler_options=asked)
            break
        except Exception as error:  # of several kinds, by platform
            unknown = compiler.unknown(error)
            if unknown in asked:
                asked = {name: value for name, value in asked.items() if name != unknown}
                continue
            refused = _refused(str(error), shard_bytes(args), begin)
            if refused is None:
                raise
            return refused
    found = compiled.memory_analysis()
    if found is None:
        raise UserError(f"the compiler for {target.kind} does not say what memory it needs")
    text = compiled.as_text()
    return Compiled(
        platform=platform,
        arguments=found.argument_size_in_bytes,
        outputs=found.output_size_in_bytes - found.alias_size_in_bytes,
        temporaries=found.temp_size_in_bytes,
        code=found.generated_code_size_in_bytes,
        peak=found.peak_memory_in_bytes,
        collectives=tuple(hlo.collectives(text)),
        options=asked,
        cost=_cost(begin),
        text=text,
    )


@contextlib.contextmanager
def trimmed(seconds: float = 5.0) -> Iterator[None]:
    """Hand memory that a compiler has freed back to the system, again and again while it works.

    glibc keeps what is freed between blocks in use, of a large program gigabytes. Without glibc
    this does nothing.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    done = threading.Event()

    def again() -> None:
        while trim is not None and not done.wait(seconds):
            trim(0)

    thread = threading.Thread(target=again, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def shard_bytes(tree: Any) -> int:
    """Bytes of a tree of abstract arrays on one device."""
    return sum(math.prod(a.sharding.shard_shape(a.shape)) * a.dtype.itemsize
               for a in jax.tree.leaves(tree))


def _cost(begin: tuple[float, float]) -> Cost:
    """Return what has been spent since `begin`, by the clock and by the cores."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Cost(time.perf_counter() - begin[0], time.process_time() - begin[1], peak)


UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
AMOUNT = r"([\d.]+)([KMGT]?)i?B?"


def _refused(said: str, arguments: int, begin: tuple[float, float]) -> Refused | None:
    """The bytes that a compiler names when memory is too small; None for any other error.

    It names either the whole or the temporaries alone.
    """
    if "RESOURCE_EXHAUSTED" not in said:
        return None
    whole = re.search(rf"[Uu]sed {AMOUNT} of {AMOUNT}", said)
    part = re.search(rf"temporaries \({AMOUNT}\) exceeds available HBM \({AMOUNT}\)", said)
    found = whole or part
    if found is None:
        return None
    needed, limit = (int(float(found[i]) * UNITS[found[i + 1]]) for i in (1, 3))
    needed += 0 if whole else arguments
    return Refused(needed, limit, _cost(begin))
