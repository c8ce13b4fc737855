"""Bytes that a step needs on one device, by kind, and what to change where they are too many.

Masters, moments and the batch are what the step takes as arguments: their shapes and shardings say
the bytes. The compiler says the whole; the rest is what the step works with. Of that, compute
weights (what products read, made once a step) and gradients (float32, as the layers leave them)
are known at most: a compiler may move either into the loop over layers. What is then left for
activations and temporaries is known at least.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh

from dsjax import params
from dsjax.config.fields import divisors
from dsjax.config.flags import commandline
from dsjax.config.run import RunConfig, with_fields
from dsjax.numerics import precision as numerics
from dsjax.numerics.precision import Precision
from dsjax.parallel import rules
from dsjax.plan.ahead import shard_bytes

Tree = Any
KINDS = ("masters", "moments", "batch and counts", "weights, gradients, activations")
WORKING = ("compute weights, at most", "gradients, at most",
           "activations and temporaries, at least")  # of the last kind


@dataclass(frozen=True)
class Memory:
    """Bytes of one device."""

    parts: dict[str, int]  # by KINDS
    working: dict[str, int]  # by WORKING
    total: int  # that the compiler asks for
    limit: int  # that a device has

    @property
    def fits(self) -> bool:
        """True where a device has enough memory."""
        return self.total <= self.limit


def measure(total: int, limit: int, state: dict[str, Tree], batch: Tree, specs: Tree, mesh: Mesh,
            precision: Precision) -> Memory:
    """Split the bytes that a compiler asks for by kind.

    state: trees of abstract arrays with shardings, by the first two of KINDS.
    """
    parts = {name: shard_bytes(tree) for name, tree in state.items()}
    parts["batch and counts"] = shard_bytes(batch)
    working = total - sum(parts.values())
    weights, gradients = _weights(specs, mesh, precision), _gradients(specs, mesh)
    most = (min(weights, working), min(gradients, working))
    least = max(working - weights - gradients, 0)
    return Memory({**parts, KINDS[-1]: working}, dict(zip(WORKING, (*most, least), strict=True)),
                  total, limit)


def _weights(specs: Tree, mesh: Mesh, precision: Precision) -> int:
    """Bytes of what products read: quantized product matrices, other leaves in float32."""
    def one(spec: params.Spec) -> int:
        leaf = jax.ShapeDtypeStruct(spec.shape, "float32")
        if not spec.is_product or not precision.casts_weights:
            where = rules.used_shardings(spec, mesh)
            return math.prod(where.shard_shape(spec.shape)) * 4
        quantized = jax.eval_shape(
            lambda w: precision.quantize_weight(numerics.as_matrix(w, spec), spec.parts), leaf)
        return sum(
            a.dtype.itemsize
            * math.prod(rules.quantized_sharding(spec, a, mesh).shard_shape(a.shape))
            for a in jax.tree.leaves(quantized))

    return sum(jax.tree.leaves(params.map_specs(one, specs)))


def _gradients(specs: Tree, mesh: Mesh) -> int:
    """Float32 gradients where layers leave them, before they are cut as masters are."""
    return sum(
        math.prod(rules.used_shardings(spec, mesh).shard_shape(spec.shape)) * 4
        for spec in jax.tree.leaves(specs, is_leaf=params.is_spec))


def advice(memory: Memory, run: RunConfig, check: Callable[[RunConfig], None]) -> str:
    """Say what to change so that a step fits, the largest part first; empty where it fits.

    A change is named if `check`, which raises UserError, takes the changed run, and if that needs
    no more devices.
    """
    if memory.fits:
        return ""
    sizes = memory.parts | memory.working
    ways = dict(zip(("masters", "moments", *WORKING),
                    (_cut_state, _cut_moments, _cut_weights, _cut_weights, _cut_activations),
                    strict=True))
    said = []
    for kind in sorted(ways, key=lambda kind: -sizes[kind]):
        name, _, bound = kind.partition(", ")
        if sizes[kind] > memory.limit / 10:
            taken = f"{name} take {bound}{' ' * bool(bound)}{sizes[kind] / 1e9:.1f} GB"
            said.append(f"{taken}: {_first(ways[kind](run), run, check)}")
    over = (memory.total - memory.limit) / 1e9
    return f"{over:.1f} GB too many. " + "; ".join(said or [MORE_DEVICES]) + "."


Way = tuple[str, dict[str, dict[str, Any]]]  # what it does, and the fields it changes by part
MORE_DEVICES = "use a machine of more devices"


def _first(ways: Iterable[Way], run: RunConfig, check: Callable[[RunConfig], None]) -> str:
    """The first way that a run can go, with its flags."""
    for what, fields in ways:
        try:
            changed = with_fields(run, **fields)
            check(changed)
        except ValueError:
            continue
        if changed.parallel.devices == run.parallel.devices:
            return f"{what}, {' '.join(commandline.flags(run, changed))}"
    return MORE_DEVICES


def _cut_state(run: RunConfig) -> Iterator[Way]:
    if not run.parallel.use_zero:
        yield "cut them over data and expert", {"parallel": {"use_zero": True}}


def _cut_moments(run: RunConfig) -> Iterator[Way]:
    yield from _cut_state(run)
    if run.optimizer.moments != "bfloat16":
        yield "hold them in two bytes", {"optimizer": {"moments": "bfloat16"}}


def _cut_weights(run: RunConfig) -> Iterator[Way]:
    layout = run.parallel
    for axis in ("fsdp", "expert"):
        if layout.data % 2 == 0:
            yield "cut them over twice as many devices", {
                "parallel": {axis: 2 * getattr(layout, axis), "data": layout.data // 2}}


def _cut_activations(run: RunConfig) -> Iterator[Way]:
    rows = run.train.batch_size // (run.train.microbatches * run.parallel.row_devices)
    for part in divisors(rows)[1:]:
        fewer = {"microbatches": part * run.train.microbatches}
        yield "fewer rows at once", {"train": fewer}
        if run.parallel.interleave:  # which needs two at once
            yield "fewer rows at once, none beside another", {
                "train": fewer, "parallel": {"interleave": False}}
    stronger = {"none": "v3", "v3": "full"}
    if run.machine.remat in stronger:
        yield "compute more again in the backward pass", {
            "machine": {"remat": stronger[run.machine.remat]}}
    yield "shorter rows", {"train": {"seq_len": run.train.seq_len // 2}}
