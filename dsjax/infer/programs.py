"""The two compiled programs of generation, found again by what they were compiled for.

Compiling apart from running lets a report tell tokens per second from seconds of compilation.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Hashable
from typing import Any

import jax
from jax import lax

from dsjax.config.model import ModelConfig
from dsjax.infer import decode, speculative
from dsjax.infer.decode import Emitted, State
from dsjax.layers.backend import Backend
from dsjax.model.transformer import TransformerParams


@functools.partial(jax.jit, static_argnames=("cfg", "backend", "steps"),
                   donate_argnames=("state",))
def advance(p: TransformerParams, state: State, *, cfg: ModelConfig, backend: Backend,
            steps: int) -> tuple[State, Emitted]:
    """Run `steps` passes of the main model in one program; emitted leaves lead with [steps].

    They are whole on every device, so that every process reads them.

    Speculates where the state holds the past of MTP modules. The state is donated: its caches are
    written in place.
    """
    one = speculative.speculative_round if state.mtp else decode.step

    def body(state: State, _: None) -> tuple[State, Emitted]:
        state, emitted = one(p, state, cfg, backend)
        return state, dataclasses.replace(emitted, logits=None)

    state, emitted = lax.scan(body, state, length=steps)
    return state, jax.tree.map(lambda a: backend.layout.constrain(a, (None,) * a.ndim), emitted)


prefill = jax.jit(decode.prefill, static_argnames=("cfg", "backend", "max_len", "depth"))


def compiled(function: Any, *args: Any, **static: Hashable) -> Callable[..., Any]:
    """Compile a jitted function for arguments like these, once; call the result with `args`."""
    leaves, tree = jax.tree.flatten(args)
    shapes = tuple(jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=getattr(a, "sharding", None))
                   for a in leaves)  # arrays of the host have none
    return _compiled(function, tree, shapes, tuple(sorted(static.items())))


@functools.lru_cache(maxsize=64)
def _compiled(function: Any, tree: Any, shapes: tuple[jax.ShapeDtypeStruct, ...],
              static: tuple[tuple[str, Hashable], ...]) -> Callable[..., Any]:
    return function.lower(*jax.tree.unflatten(tree, shapes), **dict(static)).compile()
