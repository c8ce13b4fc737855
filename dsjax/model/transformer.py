"""The main model: embedding, stacks of layers, final norm, head (V3 sec. 2.1).

Neighboring layers of equal kind are stacked and scanned (`ModelConfig.stacks`).

Axes: B batch, T time, D model, L layers of a stack, E experts, G groups, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array, lax

from dsjax import params
from dsjax.config.model import ModelConfig
from dsjax.layers import router
from dsjax.layers.backend import Backend, single
from dsjax.layers.cache import Cache
from dsjax.layers.router import RouterStats
from dsjax.model import block as blocks
from dsjax.model.block import BlockParams, Kept
from dsjax.model.mtp import MTPParams, mtp_specs
from dsjax.numerics.wide import exact, wide
from dsjax.ops import rope
from dsjax.ops.norm import rms_norm
from dsjax.params import spec


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True)
class TransformerParams:
    """Everything a released checkpoint holds.

    A stack is also an attribute by its name: the leaves of `p.stacks["moe"]` are those of `p.moe`,
    and are so called.
    """

    embed: Array  # [V, D]
    stacks: Mapping[str, BlockParams]  # by name, in order; leaves lead with [L]
    norm: Array  # [D]
    head: Array  # [D, V]
    mtp: MTPParams | None  # stacked over depths

    def __getattr__(self, name: str) -> BlockParams:
        """Find a stack by its name."""
        stacks = self.__dict__.get("stacks", {})
        if name not in stacks:
            raise AttributeError(f"TransformerParams has no {name!r}; its stacks are {[*stacks]}")
        return stacks[name]

    def replace(self, **changes: Any) -> TransformerParams:
        """The same parameters, some fields changed, as other parameter classes do it."""
        return dataclasses.replace(self, **changes)

    def tree_flatten_with_keys(self) -> tuple[list[tuple[Any, Any]], tuple[str, ...]]:
        """List children with their names; a stack stands among the other fields."""
        named = [("embed", self.embed), *self.stacks.items(), ("norm", self.norm),
                 ("head", self.head), ("mtp", self.mtp)]
        return [(jax.tree_util.GetAttrKey(name), a) for name, a in named], tuple(self.stacks)

    @classmethod
    def tree_unflatten(cls, names: tuple[str, ...], children: Sequence[Any]) -> TransformerParams:
        """Put children back, as `tree_flatten_with_keys` listed them."""
        embed, *stacks, norm, head, mtp = children
        return cls(embed, dict(zip(names, stacks, strict=True)), norm, head, mtp)


@struct.dataclass
class Hidden:
    """Output of the layers for a batch."""

    x: Array  # [B, T, D], after the final norm
    stats: RouterStats | None  # leaves lead with [L] over mixture layers
    kept: dict[str, Kept | None]  # by stack, for a cache; leaves lead with [L]; None unless asked


def specs(cfg: ModelConfig) -> TransformerParams:
    """Describe every parameter of a model; nothing is allocated."""
    return TransformerParams(
        embed=spec((cfg.vocab, cfg.d_model), ("vocab", "embed"), role="embedding"),
        stacks={stack.name: params.stack(blocks.block_specs(cfg, stack.is_moe), stack.count)
                for stack in cfg.stacks},
        norm=spec((cfg.d_model,), (None,), "ones", role="norm"),
        head=spec((cfg.d_model, cfg.vocab), ("embed", "vocab"), role="head"),
        mtp=mtp_specs(cfg) if cfg.mtp_depth else None,
    )


def init(cfg: ModelConfig, key: Array) -> TransformerParams:
    """Draw the start values of a model."""
    return params.init(specs(cfg), key, cfg.init_std)


def hidden(p: TransformerParams, tokens: Array, segments: Array, cfg: ModelConfig,
           backend: Backend, *, is_kept: bool = False, routes: Array | None = None) -> Hidden:
    """Run every layer over whole rows. tokens, segments [B, T] int32 (segment 0 is padding).

    `routes` [L, B, T, K] are experts that each mixture layer's tokens take instead of the router's
    choice: `stats.experts` of a pass whose backend keeps routes, or what an engine handed out.
    """
    angles = rope.angles(cfg.rope, blocks.rope_dim(cfg), jnp.arange(tokens.shape[1]))

    def layer(p: BlockParams, x: Array, segments: Array,
              routes: Array | None = None) -> tuple[Array, Any, Kept | None]:
        attend = blocks.prefill(angles, segments, cfg, backend)
        x, stats, kept = blocks.block(p, x, attend, segments != 0, cfg, backend, routes)
        return x, stats, kept if is_kept else None

    is_scanned = backend.unroll == 1 or backend.unroll < max(s.count for s in cfg.stacks)
    layer = backend.remat(layer, is_scanned)

    def body(x: Array, of_layer: tuple[BlockParams, Array | None]) -> tuple[Array, Any]:
        p, *given = (part for part in of_layer if part is not None)
        x, stats, kept = backend.interleave(layer, p, x, segments, *given)
        return x, (stats, kept)

    x, stats, keeps, first = embed(p, tokens, backend), [], {}, 0
    for stack in cfg.stacks:
        given = None
        if stack.is_moe and routes is not None:
            given, first = routes[first : first + stack.count], first + stack.count
        x, (found, keeps[stack.name]) = lax.scan(
            body, x, (p.stacks[stack.name], given), unroll=min(backend.unroll, stack.count))
        stats += [found] if stack.is_moe else []
    return Hidden(rms_norm(x, p.norm, cfg.norm_eps), router.joined(stats), keeps)


def embed(p: TransformerParams, tokens: Array, backend: Backend) -> Array:
    """Look tokens up. tokens [B, T] -> [B, T, D] in the backend's dtype."""
    x = p.embed.at[tokens].get(mode="clip").astype(backend.dtype)
    return backend.layout.constrain(x, ("batch", None, None))


def head(p: TransformerParams, x: Array) -> Array:
    """Multiply normalized hidden states by the head, in float32. x [..., D] -> [..., V]."""
    return jnp.matmul(x.astype(wide(x.dtype)), p.head.astype(wide(x.dtype)),
                      precision=exact(wide(x.dtype)))


def logits(p: TransformerParams, tokens: Array, cfg: ModelConfig, segments: Array | None = None,
           backend: Backend | None = None) -> Array:
    """The model as a function of tokens. tokens [B, T] int32 -> logits [B, T, V] float32."""
    segments = jnp.ones_like(tokens) if segments is None else segments
    return head(p, hidden(p, tokens, segments, cfg, backend or single()).x)


@struct.dataclass
class ModelCache:
    """The past of every layer."""

    stacks: dict[str, Cache]  # leaves lead with [L]
    counts: Counts | None = None
    """Loads of experts, where they are measured."""
    routes: Array | None = None
    """[L, B, T, K] experts of the tokens that came last, where the backend keeps routes."""


@struct.dataclass
class Counts:
    """Tokens that chose each expert; new ones are added as they pass."""

    loads: dict[str, Array]  # [L, E] of each stack of mixtures, of physical experts if there are
    is_real: Array  # [B, T] bool, which of the new tokens count


def empty_cache(cfg: ModelConfig, batch: int, length: int, backend: Backend) -> ModelCache:
    """Make the caches of `batch` rows of `length` positions, before their first tokens."""
    one = blocks.empty_cache(cfg, batch, length, backend)
    return ModelCache({
        stack.name: jax.tree.map(lambda a, n=stack.count: jnp.broadcast_to(a, (n, *a.shape)), one)
        for stack in cfg.stacks})


def make_cache(read: Hidden, length: int, backend: Backend) -> ModelCache:
    """Make the caches of rows of `length` positions whose first tokens `hidden` has read."""
    make = jax.vmap(lambda kept: backend.make_cache(kept, length))
    return ModelCache({name: make(kept) for name, kept in read.kept.items()})


def hidden_cached(p: TransformerParams, tokens: Array, positions: Array, cache: ModelCache,
                  cfg: ModelConfig, backend: Backend) -> tuple[Array, ModelCache]:
    """Run new tokens against the cache. tokens, positions [B, T] -> [B, T, D] after the norm.

    Tokens are written at their positions; each looks at every position up to its own.
    """
    x = embed(p, tokens, backend)
    angles = rope.angles(cfg.rope, blocks.rope_dim(cfg), positions)
    counts = cache.counts
    is_real = jnp.ones(tokens.shape, bool) if counts is None else counts.is_real

    def body(x: Array, layer: tuple[BlockParams, Cache, Array | None]
             ) -> tuple[Array, tuple[Cache, Array | None, Array | None]]:
        p, past, loads = layer
        attend = blocks.decode(angles, positions, past, cfg, backend)
        x, stats, new = blocks.block(p, x, attend, is_real, cfg, backend)
        if loads is not None and stats is not None:
            more = stats.loads if stats.physical_loads is None else stats.physical_loads
            loads = loads + more.sum(0)
        return x, (new, loads, None if stats is None else stats.experts)

    caches, loads, chosen = {}, {} if counts is None else dict(counts.loads), []
    for name, stack in p.stacks.items():
        x, (caches[name], more, experts) = lax.scan(
            body, x, (stack, cache.stacks[name], loads.get(name)))
        if more is not None:
            loads[name] = more
        chosen += [] if experts is None else [experts]
    if counts is not None:
        counts = dataclasses.replace(counts, loads=loads)
    routes = jnp.concatenate(chosen) if chosen else None
    return rms_norm(x, p.norm, cfg.norm_eps), ModelCache(caches, counts, routes)


Stacked = TypeVar("Stacked", TransformerParams, ModelCache)


def layers_of(a: Array) -> list[Array]:
    """Cut an array [L, ...] into its layers, [1, ...] each."""
    return [a[i : i + 1] for i in range(len(a))]


def written_out(p: Stacked, cut: Callable[[Array], list[Array]] = layers_of) -> Stacked:
    """The same layers, each a stack of its own (`moe.0`, `moe.1`, ...), for `hidden_cached`.

    A scan reads a layer out of its stack, which on a CPU is a copy of all its weights and cache.
    `cut` is called once for each array.
    """
    layers = {}
    for name, stack in p.stacks.items():
        arrays, tree = jax.tree.flatten(stack)
        made = {id(a): a for a in arrays}
        parts = {key: cut(a) for key, a in made.items()}
        for i, layer in enumerate(zip(*(parts[id(a)] for a in arrays), strict=True)):
            layers[f"{name}.{i}"] = jax.tree.unflatten(tree, layer)
    return dataclasses.replace(p, stacks=layers)
