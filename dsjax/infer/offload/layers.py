"""Layers one by one, for a model whose routed experts lie in a cache.

The layers are the model's own (`model/block.py`); only the order of work differs. A program runs
what is left of the layer before (its experts' products and the shared experts), then this layer's
attention and router, and ends with each token's experts. Those the host makes sure of before it
starts the next program. The same program applies the next layer's router to what it knows of that
layer's input, the residual stream before this layer's experts are added: these predicted experts
are fetched while the next program runs.

A layer of a long prompt may want more experts than there are slots. They then come in waves, whose
outputs are kept apart until all are there, so that sums are those of one wave to the bit.

Axes: B rows, T time, D model, K experts per token, L mixture layers, E experts, S slots.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from dsjax.config.model import ModelConfig
from dsjax.infer.offload.apart import experts_apart
from dsjax.infer.offload.cache import ExpertCache, Pool
from dsjax.layers import router
from dsjax.layers.backend import Backend
from dsjax.layers.cache import Cache
from dsjax.layers.moe import MoEParams
from dsjax.layers.router import RouterParams
from dsjax.model import block as blocks
from dsjax.model.block import BlockParams
from dsjax.model.transformer import ModelCache, TransformerParams
from dsjax.ops import rope
from dsjax.ops.norm import rms_norm


@struct.dataclass
class At:
    """Places of tokens in their rows."""

    positions: Array  # [B, T], or [1, T] of whole rows
    segments: Array | None  # [B, T] of whole rows, which read no cache


@struct.dataclass
class Left:
    """A mixture layer that is done up to its experts."""

    layer: BlockParams  # leaves lead with [1]
    slots: Array | None  # [B*T, K] of each token's experts; S where one is not there
    weights: Array  # [B*T, K]
    rows: Array | None = None  # [B*T, K, D] outputs that are there already


@struct.dataclass
class Next:
    """A layer as the one before looks ahead to it."""

    norm: Array  # [1, D]
    router: RouterParams  # leaves lead with [1]


@struct.dataclass
class Entered:
    """A layer's outcome up to its experts, if it has some."""

    x: Array  # [B, T, D]
    past: Cache  # leaves lead with [1]
    experts: Array | None  # [B*T, K]
    weights: Array | None  # [B*T, K]
    predicted: Array | None  # [B*T, K] of the next layer


class Layers:
    """A model's layers over a cache of experts.

    `compile_s` are the seconds of programs' first calls.
    """

    def __init__(self, params: TransformerParams, cfg: ModelConfig, backend: Backend,
                 cache: ExpertCache) -> None:
        """Take parameters whose layers are written out and have no routed experts."""
        self.cfg, self.backend, self.cache = cfg, backend, cache
        self.compile_s = 0.0
        self._norm, self._layers = params.norm, list(params.stacks.items())
        self._seen: set[tuple[Any, ...]] = set()

    def read(self, x: Array, segments: Array, is_real: np.ndarray,
             length: int) -> tuple[Array, ModelCache]:
        """Run whole rows, as `transformer.hidden` does; make caches of `length` positions.

        x [B, T, D] embedded, segments [B, T]; is_real [B, T], others' experts are not fetched.
        """
        at = At(jnp.arange(x.shape[1], dtype=jnp.int32)[None], segments)
        return self._run(x, at, None, is_real, length)

    def step(self, x: Array, positions: Array, past: ModelCache,
             is_real: np.ndarray | None = None) -> tuple[Array, ModelCache]:
        """Run new tokens against the caches, as `transformer.hidden_cached` does.

        x [B, T, D] embedded, positions [B, T]. The caches are donated.
        """
        is_real = np.ones(x.shape[:2], bool) if is_real is None else is_real
        return self._run(x, At(positions, None), past, is_real, 0)

    def _run(self, x: Array, at: At, past: ModelCache | None, is_real: np.ndarray,
             length: int) -> tuple[Array, ModelCache]:
        left, caches, mixture, flat = None, {}, 0, is_real.reshape(-1)
        for i, (name, layer) in enumerate(self._layers):
            out: Entered = self._call(
                _enter, left, self.cache.pool if left else None, layer, self._next(i), x,
                past.stacks[name] if past else None, at, length=length)
            x, caches[name], left = out.x, out.past, None
            if out.experts is not None:
                left = self._hold(mixture, layer, out, flat)
                mixture += 1
            if out.predicted is not None:
                self.cache.predict(mixture, _by_votes(np.asarray(out.predicted)[flat]))
        x = self._call(_leave, left, self.cache.pool if left else None, self._norm, x)
        return x, ModelCache(caches)

    def _hold(self, mixture: int, layer: BlockParams, out: Entered, is_real: np.ndarray) -> Left:
        """Make a layer's experts lie in slots, in waves if more may be wanted than there are slots.

        Programs depend on how many experts tokens may choose, not on how many they do.
        """
        assert out.experts is not None, "a mixture layer was entered"
        assert out.weights is not None, "which weighs its experts"
        chosen = np.asarray(out.experts)
        wanted = np.unique(chosen[is_real]).tolist()
        self.cache.judge(mixture, wanted)
        count = self.cache.slots.count
        if min(chosen.size, self.cache.experts) <= count:
            return Left(layer, self._slots(mixture, wanted, chosen, is_real), out.weights)
        wanted.sort(key=lambda e: (mixture, e) not in self.cache.slots)  # before they go
        rows = jnp.zeros((*chosen.shape, out.x.shape[-1]), out.x.dtype)
        for start in range(0, max(len(wanted), 1), count):
            slots = self._slots(mixture, wanted[start : start + count], chosen, is_real)
            left = Left(layer, slots, out.weights, rows)
            rows = self._call(_add_wave, left, self.cache.pool, out.x)
        return Left(layer, None, out.weights, rows)

    def _slots(self, mixture: int, experts: list[int], chosen: np.ndarray,
               is_real: np.ndarray) -> Array:
        """Slots [B*T, K] of chosen experts [B*T, K], those of some experts alone."""
        table = self.cache.hold(mixture, experts)
        slots = np.where(is_real[:, None], table[chosen], np.int32(self.cache.slots.count))
        return jnp.asarray(slots)

    def _next(self, i: int) -> Next | None:
        """The layer after the i-th, if it is a mixture and its experts are to be predicted."""
        if i + 1 == len(self._layers) or not self.cache.is_ahead:
            return None
        after = self._layers[i + 1][1]
        if not isinstance(after.ffn, MoEParams):
            return None
        return Next(after.ffn_norm, after.ffn.router)

    def _call(self, program: Any, left: Left | None, pool: Pool | None, *args: Any,
              **static: Any) -> Any:
        """Call a program; its first call with arguments of a shape counts as its compilation."""
        shapes = tuple((a.shape, a.dtype) for a in jax.tree.leaves((left, args)))
        known = (program, jax.tree.structure((left, args)), shapes, *static.values())
        began = time.perf_counter()
        out = program(left, pool, *args, cfg=self.cfg, backend=self.backend, **static)
        if known not in self._seen:
            self._seen.add(known)
            jax.block_until_ready(out)
            self.compile_s += time.perf_counter() - began
        return out


def _by_votes(predicted: np.ndarray) -> list[int]:
    """Experts by how many tokens are predicted to want them, most first. predicted [T, K]."""
    experts, votes = np.unique(predicted, return_counts=True)
    return experts[np.argsort(-votes, kind="stable")].tolist()


@functools.partial(jax.jit, static_argnames=("cfg", "backend", "length"), donate_argnames="past")
def _enter(left: Left | None, pool: Pool | None, layer: BlockParams, after: Next | None, x: Array,
           past: Cache | None, at: At, *, cfg: ModelConfig, backend: Backend,
           length: int) -> Entered:
    """Finish the layer before, then run a layer up to its experts, or whole if it is dense."""
    x = _finish(left, pool, x, cfg, backend)
    p: BlockParams = _one(layer)
    angles = rope.angles(cfg.rope, blocks.rope_dim(cfg), at.positions)
    if past is None:
        assert at.segments is not None, "whole rows have segments"
        expanded = rope.angles(cfg.rope, blocks.rope_dim(cfg), at.positions[0])
        attend = blocks.prefill(expanded, at.segments, cfg, backend)
        x, kept = blocks.attention(p, x, attend, cfg)
        cache = backend.make_cache(kept, length)
    else:
        attend = blocks.decode(angles, at.positions, _one(past), cfg, backend)
        x, cache = blocks.attention(p, x, attend, cfg)
    experts = weights = predicted = None
    if isinstance(p.ffn, MoEParams):
        experts, weights = _routed(p.ffn.router, x, p.ffn_norm, cfg)
    else:
        x, _ = blocks.feed_forward(p, x, jnp.ones(x.shape[:2], bool), cfg, backend)
    if after is not None:
        ahead: Next = _one(after)
        predicted, _ = _routed(ahead.router, x, ahead.norm, cfg)
    return Entered(x, jax.tree.map(lambda a: a[None], cache), experts, weights, predicted)


@functools.partial(jax.jit, static_argnames=("cfg", "backend"))
def _leave(left: Left | None, pool: Pool | None, norm: Array, x: Array, *, cfg: ModelConfig,
           backend: Backend) -> Array:
    """Finish the last layer, and normalize."""
    return rms_norm(_finish(left, pool, x, cfg, backend), norm, cfg.norm_eps)


@functools.partial(jax.jit, static_argnames=("cfg", "backend"))
def _add_wave(left: Left, pool: Pool, x: Array, *, cfg: ModelConfig, backend: Backend) -> Array:
    """Outputs [B*T, K, D] of the experts that lie in slots, beside those of earlier waves."""
    y = rms_norm(x, _one(left.layer).ffn_norm, cfg.norm_eps)
    return _products(left, pool, y.reshape(-1, y.shape[-1]), backend)


def _finish(left: Left | None, pool: Pool | None, x: Array, cfg: ModelConfig,
            backend: Backend) -> Array:
    """Add the feed-forward of a layer that was entered. x [B, T, D] before it."""
    if left is None:
        return x
    assert pool is not None, "a mixture needs its experts"

    def dispatch(x: Array, *_: Any) -> tuple[Array, Array]:
        """Take the choice that was made when the layer was entered."""
        return _products(left, pool, x, backend).sum(axis=1), jnp.zeros(())

    chosen: Any = dispatch
    own = dataclasses.replace(backend, dispatch=chosen)
    return blocks.feed_forward(_one(left.layer), x, jnp.ones(x.shape[:2], bool), cfg, own)[0]


def _products(left: Left, pool: Pool, x: Array, backend: Backend) -> Array:
    if left.slots is None:
        assert left.rows is not None, "without slots, outputs are there already"
        return left.rows
    return experts_apart(x, left.slots, left.weights.astype(x.dtype), pool.gate_up, pool.down,
                         mlp=backend.expert_mlp, into=left.rows)


def _routed(p: RouterParams, x: Array, norm: Array, cfg: ModelConfig) -> tuple[Array, Array]:
    """Experts and weights [B*T, K] of the residual stream before a layer's feed-forward."""
    assert cfg.moe is not None, "a router needs a MoEConfig"
    routing = router.route(p, rms_norm(x, norm, cfg.norm_eps), cfg.moe)
    per_token = cfg.moe.experts_per_token
    return routing.experts.reshape(-1, per_token), routing.weights.reshape(-1, per_token)


def _one(tree: Any) -> Any:
    """The only layer of a stack."""
    return jax.tree.map(lambda a: a[0], tree)

