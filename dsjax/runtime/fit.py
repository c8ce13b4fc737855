"""Refuse in a sentence what does not fit the memory that is here, with the flags that make it fit.

Three moments: before anything is made (`refuse_training`, `refuse`), by what is surely needed
(needs.py); when a step has been compiled (`checked`), by what its compiler asks for; and when
memory runs out all the same (`explained`, `refusing`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
from jax.sharding import Mesh

from dsjax.config.fields import divisors
from dsjax.config.run import RunConfig
from dsjax.errors import UserError
from dsjax.runtime import free_memory, needs
from dsjax.runtime.free_memory import Room

Check = Callable[[RunConfig], None]  # raises UserError where a run does not go
Step = TypeVar("Step", bound=Callable[..., Any])
MOST_ROWS = 6  # ways to cut a batch that are tried
MOST_FLAGS = 4  # named together
ASKED = 3  # times what is counted is what compilers ask for, in steps of the project's configs
UNKNOWN = Room(0, "perhaps free: the device does not say")
RAN_OUT = re.compile(r"RESOURCE_EXHAUSTED|[Oo]ut of memory|bad_alloc")


@dataclass(frozen=True)
class Way:
    """A flag that lowers what a run needs."""

    flag: str
    value: Any
    run: RunConfig  # with it
    is_same: bool  # whether what it computes stays the same


def refuse_training(run: RunConfig, mesh: Mesh | None, check: Check) -> None:
    """Refuse a run that surely needs more than is free here."""
    there = _here(mesh)
    if there is not None and _whole(run, mesh, there) > there.free:
        raise UserError(_too_much(run, mesh, there, check))


def refuse(what: str, parts: Mapping[str, int], remedy: str) -> None:
    """Refuse what surely needs more than is free on this process's first device.

    parts: bytes, by name.
    """
    there = _here(None)
    if there is not None and sum(parts.values()) > there.free:
        raise UserError(_sentence(what, parts, remedy, there))


def has_room(nbytes: int) -> bool:
    """Return True if so many bytes are free on this process's first device, as far as it says."""
    there = _here(None)
    return there is not None and nbytes <= there.free


@contextlib.contextmanager
def refusing(what: str, parts: Mapping[str, int], remedy: str) -> Iterator[None]:
    """As `refuse`, and the same sentence where memory runs out within the block."""
    refuse(what, parts, remedy)
    before = _here(None) or UNKNOWN
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not ran_out(error):
            raise
        what = f"{what} ran out of memory: it"
        raise UserError(_sentence(what, parts, remedy, before)) from error


def _sentence(what: str, parts: Mapping[str, int], remedy: str, there: Room) -> str:
    return (f"{what} needs at least {said(sum(parts.values()))} of memory and {said(there.free)} "
            f"are {there.whose}: {_listed(parts)}; {remedy}")


def checked(step: Step, run: RunConfig, mesh: Mesh | None, check: Check) -> Step:
    """A jitted step that is refused, before it runs on a batch of a new shape, where its compiler
    asks for more than is free. Other programs (an evaluation's) need less than a step."""
    seen = set()

    @functools.wraps(step)
    def guarded(state: Any, batch: Any) -> Any:
        shape = tuple(a.shape for a in jax.tree.leaves(batch))
        if shape not in seen:
            _refuse_compiled(step, run, mesh, check, state, batch)
            seen.add(shape)
        return step(state, batch)

    return guarded  # type: ignore[return-value]


def _refuse_compiled(step: Any, run: RunConfig, mesh: Mesh | None, check: Check, state: Any,
                     batch: Any) -> None:
    """Compile a step, which jit then finds, and hold what it works in against what is free."""
    found = step.lower(state, batch).compile().memory_analysis()
    there = _here(mesh)
    if found is None or there is None:
        return
    news = found.temp_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    if news * there.devices > there.free:
        share = _whole(run, mesh, there) / (news * there.devices)  # what is counted of what is
        counted = dataclasses.replace(there, free=int(there.free * share))
        raise UserError(
            f"a step of {_named(run)} works in {said(news * there.devices)} of memory beside its "
            f"state, as its compiler says, and {said(there.free)} are {there.whose}; "
            f"{advice(run, mesh, counted, check)}")


@contextlib.contextmanager
def explained(run: RunConfig, mesh: Mesh | None, check: Check) -> Iterator[None]:
    """Turn running out of memory within the block into the sentence of `refuse_training`."""
    before = _here(mesh)
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not ran_out(error):
            raise
        if before is None:
            before = Room(_whole(run, mesh, UNKNOWN) // 2, UNKNOWN.whose)
        raise UserError(_too_much(run, mesh, before, check, "ran out of memory: it ")) from error


def ran_out(error: Exception) -> bool:
    """Return True if an error says that memory was asked for and not given."""
    return isinstance(error, MemoryError) or bool(RAN_OUT.search(str(error)))


def _here(mesh: Mesh | None) -> Room | None:
    """Return the memory free on this process's devices of a mesh."""
    return free_memory.of(jax.local_devices()[:1] if mesh is None else mesh.local_devices)


def _whole(run: RunConfig, mesh: Mesh | None, there: Room) -> int:
    """Bytes that a run surely needs of this room."""
    found = needs.training(run, mesh)
    average = found.average if there.is_host else 0
    return there.devices * (found.least + average)


def _named(run: RunConfig) -> str:
    train = run.train
    return f"{run.name} on {train.batch_size} rows of {train.seq_len} tokens"


def _too_much(run: RunConfig, mesh: Mesh | None, there: Room, check: Check,
              happened: str = "") -> str:
    """Say what a run needs by part, what is free, and what to change."""
    found = needs.training(run, mesh)
    parts = found.parts
    if there.is_host:
        parts["the average of the parameters"] = found.average
    each = f" on each of {there.devices} devices" if there.devices > 1 else ""
    total = _whole(run, mesh, there)
    return (f"training {_named(run)} {happened}needs at least {said(total)} of memory and "
            f"{said(there.free)} are {there.whose}: {_listed(parts)}{each}; "
            f"{advice(run, mesh, there, check)}")


def _listed(parts: Mapping[str, int]) -> str:
    """Parts with their bytes, the largest first, without those that hardly count."""
    total = sum(parts.values())
    return ", ".join(f"{said(size)} {name}" for name, size in sorted(
        parts.items(), key=lambda part: -part[1]) if size > total / 10_000)


def said(size: float) -> str:
    """Bytes as people say them."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if size >= unit:
            return f"{size / unit:,.1f} {name}"
    return f"{size / 1e3:.1f} kB"


def advice(run: RunConfig, mesh: Mesh | None, there: Room, check: Check) -> str:
    """Flags that lower what a run needs, each with what it saves, until it is likely to fit."""
    named: dict[str, tuple[Any, int]] = {}
    likely = there.free / ASKED
    while True:
        size = _whole(run, mesh, there)
        useful = [(saved, way) for way in ways(run, check)
                  if (saved := size - _whole(way.run, mesh, there)) > size / 50]
        useful = [(saved, way) for saved, way in useful if way.is_same] or useful
        if (named and size <= likely) or not useful or len(named) == MOST_FLAGS:
            break
        fitting = [found for found in useful if size - found[0] <= likely]
        saved, way = fitting[0] if fitting else max(useful, key=lambda found: found[0])
        run = way.run
        named[way.flag] = (way.value, named.get(way.flag, (None, 0))[1] + saved)
    flags = ", ".join(f"{flag} {value} saves at least {said(saved)}"
                      for flag, (value, saved) in named.items())
    if named and size <= there.free:
        return flags
    rest = f"{flags}, and the rest is still {said(size)}:" if named else "no flag lowers that much:"
    return (f"{rest} use a machine with more memory, more of them with --parallel.fsdp, or a "
            "smaller model")


def ways(run: RunConfig, check: Check) -> Iterator[Way]:
    """Changes that lower what a run needs of a device, those that change no number first."""
    for is_same, part, field, value in _changes(run):
        try:
            owner = dataclasses.replace(getattr(run, part), **{field: value})
            changed = dataclasses.replace(run, **{part: owner})
            check(changed)
        except ValueError:
            continue
        if changed != run:
            yield Way(f"--{part}.{field.replace('_', '-')}", value, changed, is_same)


def _changes(run: RunConfig) -> Iterator[tuple[bool, str, str, Any]]:
    train = run.train
    parts = divisors(train.batch_size)
    more = [n for n in parts if n > train.microbatches]
    for count in more[:: max(len(more) // MOST_ROWS, 1)] + more[-1:]:
        yield True, "train", "microbatches", count
    for remat in ("v3", "full"):
        yield True, "machine", "remat", remat
    if run.optimizer.moments != "bfloat16":
        yield False, "optimizer", "moments", "bfloat16"
    if run.optimizer.ema_decay:
        yield False, "optimizer", "ema_decay", 0.0
    if run.precision.activations != "bfloat16":
        yield False, "precision", "activations", "bfloat16"
    fewer = [n for n in parts if n < train.batch_size]
    for rows in fewer[:: -max(len(fewer) // MOST_ROWS, 1)]:
        yield False, "train", "batch_size", rows
    if train.seq_len > 2:
        yield False, "train", "seq_len", train.seq_len // 2
