"""The cache of routed experts on the device: one pool of slots for all layers, and what it cost.

    bytes asked for >= slots * bytes of a slot + (ahead + 1) * bytes of an expert on its way

A slot holds an expert in the form that products read: as stored, quantized to the precision, or
codes and scales where the checkpoint rests in FP8. What is on its way counts, too: experts that
were fetched ahead and wait for a slot, and the one that is being sent.

Axes: S slots, E experts, K experts per token, D model, F expert hidden.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array, lax

from dsjax.config.model import ModelConfig
from dsjax.errors import UserError
from dsjax.infer.offload.fetch import Fetcher
from dsjax.infer.offload.slots import Held, Slots
from dsjax.infer.offload.store import Store
from dsjax.layers.swiglu import SwiGLUParams
from dsjax.numerics.precision import Precision, Weight
from dsjax.numerics.scaled import Scaled
from dsjax.ops.expert_stack import Stack, as_operand, stack
from dsjax.params import Tree

NO_DRAFTS = ("drafting reads the experts of MTP modules, which no cache of experts holds; leave "
             "--draft or --experts-cache out")
ON_ITS_WAY = 4
"""Of the room, one part in so many at most is for experts that are fetched ahead."""


@struct.dataclass
class Pool:
    """Experts in slots, [S, D, 2F] and [S, F, D]."""

    gate_up: Stack
    down: Stack


@dataclass(frozen=True)
class Room:
    """Room on the device for routed experts, and what is known of them."""

    nbytes: int
    """Bytes at most, slots and what is on its way together."""
    loads: tuple[tuple[float, ...], ...] | None = None
    """Tokens that chose each expert when it was measured, a row a mixture layer: the heaviest fill
    the slots before the first token, and of equally old ones the lightest goes."""
    is_ahead: bool = True
    """Predict the next layer's experts and fetch them ahead, where there is room."""


@dataclass
class Counts:
    """Counts of experts, each once a layer and pass, and what fetching cost."""

    wanted: int = 0
    """Experts that tokens chose."""
    hits: int = 0
    """Of them, those that lay in a slot."""
    ahead: int = 0
    """Of the others, those that were fetched ahead or on their way."""
    expected: int = 0
    """Experts that were wanted in layers for which a prediction was made."""
    right: int = 0
    """Of them, those that were predicted."""
    read_bytes: int = 0
    """Bytes that were read to fill slots."""
    waited_s: float = 0.0
    """Seconds in which the device waited for experts."""

    @property
    def hit_rate(self) -> float:
        """Share of the wanted experts that lay in slots; 1 of none."""
        return self.hits / self.wanted if self.wanted else 1.0

    @property
    def ahead_rate(self) -> float:
        """Share of the wanted experts that did not lie in slots, but were fetched ahead."""
        return self.ahead / self.wanted if self.wanted else 0.0

    @property
    def accuracy(self) -> float:
        """Share of the wanted experts that had been predicted; 0 where nothing was."""
        return self.right / self.expected if self.expected else 0.0

    def since(self, before: Counts) -> Counts:
        """Subtract an earlier state of the same counts."""
        return Counts(*(getattr(self, f.name) - getattr(before, f.name) for f in fields(self)))


class ExpertCache:
    """Slots on the device, filled from a store as tokens choose experts."""

    def __init__(self, store: Store, cfg: ModelConfig, precision: Precision, room: Room) -> None:
        """Allocate the slots; refuse room for less than a token's experts of one layer."""
        assert cfg.moe is not None, "a cache is of a mixture"
        self.experts, self.store = cfg.moe.experts, store
        stored = store.spec()
        form = jax.eval_shape(functools.partial(as_pool, precision=precision), stored)
        slots, ahead = _sizes(room, nbytes(form), store, cfg)
        self.slots = Slots(slots, _by_key(room, store))
        self.pool: Pool = jax.tree.map(
            lambda a: jnp.zeros((slots, *a.shape), a.dtype), form)
        self.counts, self.is_ahead = Counts(), ahead > 0
        number = jax.ShapeDtypeStruct((), np.int32)
        self._put = _put.lower(self.pool, number, stored, precision=precision).compile()
        self._fetcher = Fetcher(store, ahead)
        self._predicted: tuple[int, frozenset[int]] | None = None
        self._fill(self.slots.first_fill())

    def hold(self, layer: int, experts: Sequence[int]) -> np.ndarray:
        """Make experts of a mixture layer lie in slots, at most as many as there are.

        Returns the slot of each of the layer's experts [E], int32; the number of slots for others.
        """
        keys = [(layer, e) for e in experts]
        ahead = [key for key in keys if key in self._fetcher.ahead]
        held = self.slots.hold(keys)
        self.counts.wanted += len(keys)
        self.counts.hits += len(keys) - len(held.missing)
        self.counts.ahead += len(ahead)
        self._fill(held)
        table = np.full(self.experts, self.slots.count, np.int32)
        table[list(experts)] = [held.slots[key] for key in keys]
        return table

    def predict(self, layer: int, experts: Sequence[int]) -> None:
        """Note which experts the next mixture layer is likely to want, and begin to fetch them."""
        self._predicted = layer, frozenset(experts)
        self._fetcher.expect(key for e in experts if (key := (layer, e)) not in self.slots)

    def judge(self, layer: int, experts: Sequence[int]) -> None:
        """Count how many of the experts that a layer wants were predicted, if it was tried."""
        if self._predicted is not None and self._predicted[0] == layer:
            self.counts.expected += len(experts)
            self.counts.right += len(self._predicted[1].intersection(experts))
        self._predicted = None

    def close(self) -> None:
        """End the threads that fetch."""
        self._fetcher.close()

    def _fill(self, held: Held) -> None:
        """Fetch what is missing into its slots; what could not be fetched has none."""
        began, left = time.perf_counter(), set(held.missing)
        try:
            for key, expert in self._fetcher.take(held.missing):
                self.pool = self._put(self.pool, np.int32(held.slots[key]), expert)
                jax.block_until_ready(self.pool)  # so that one is on its way at a time
                del expert
                left.discard(key)
                self.counts.read_bytes += self.store.expert_bytes
        except BaseException:
            self.slots.forget(left)
            raise
        self.counts.waited_s += time.perf_counter() - began


def as_pool(expert: SwiGLUParams, precision: Precision) -> Pool:
    """One expert in the form that lies in a slot, without the leading S."""

    def one(w: Any, parts: int) -> Stack:
        if isinstance(w, Scaled) or not precision.casts_weights:
            return stack(w, parts)
        return stack(Weight(w, as_operand(w, precision, parts)), parts)

    return Pool(one(expert.w_gate_up, 2), one(expert.w_down, 1))


def nbytes(tree: Tree) -> int:
    """Bytes of a tree of arrays or of their shapes."""
    return sum(math.prod(a.shape) * a.dtype.itemsize for a in jax.tree.leaves(tree))


def _sizes(room: Room, slot: int, store: Store, cfg: ModelConfig) -> tuple[int, int]:
    """Slots that fit, and how many experts are fetched ahead beside them."""
    assert cfg.moe is not None, "a cache is of a mixture"
    sent, least = store.expert_bytes, cfg.moe.experts_per_token

    def fitting(ahead: int) -> int:
        return (room.nbytes - (ahead + 1) * sent) // slot

    if fitting(0) < least:
        raise UserError(
            f"a cache of {room.nbytes:,} bytes has no room for the {least} experts of a token in "
            f"one layer, of {slot:,} bytes each, and for one on its way ({sent:,} bytes); give it "
            f"at least {(least * slot + sent + 999) // 1000}kB")
    ahead = 0
    if room.is_ahead:  # as many as a token chooses, where these take at most a share of the room
        most = min(least, room.nbytes // (ON_ITS_WAY * sent) - 1)
        ahead = max((a for a in range(1, most + 1) if fitting(a) >= least), default=0)
    return min(fitting(ahead), len(store.layers) * store.experts), ahead


def _by_key(room: Room, store: Store) -> dict[tuple[int, int], float]:
    """Measured loads by expert, refused where they are another model's."""
    if room.loads is None:
        return {}
    shape = (len(room.loads), *{len(row) for row in room.loads})
    if shape != (len(store.layers), store.experts):
        raise UserError(f"the measured loads are of {list(shape)} layers and experts, but the "
                        f"model has {len(store.layers)} mixture layers of {store.experts}; give "
                        "the loads of this model, or none")
    return {(layer, e): load for layer, row in enumerate(room.loads) for e, load in enumerate(row)}


@functools.partial(jax.jit, static_argnames="precision", donate_argnames="pool")
def _put(pool: Pool, slot: Array, expert: SwiGLUParams, *, precision: Precision) -> Pool:
    """Write an expert into a slot, in place."""
    return jax.tree.map(lambda a, one: lax.dynamic_update_index_in_dim(a, one, slot, 0), pool,
                        as_pool(expert, precision))
