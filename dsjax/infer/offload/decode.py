"""Generation by the layers of an offloaded model: the two programs of `generate`, layer by layer.

What is chosen and how is `infer.decode`'s own; what lies between are `Layers`. A pass is one step,
as the host looks at every layer anyway.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
from jax import Array

from dsjax.config.model import ModelConfig
from dsjax.infer import decode
from dsjax.infer.decode import Emitted, Prompts, State
from dsjax.infer.offload.cache import ExpertCache
from dsjax.infer.offload.layers import Layers
from dsjax.layers.backend import Backend
from dsjax.model import transformer
from dsjax.model.transformer import ModelCache, TransformerParams

NONE = ModelCache({})


class Programs:
    """Prefill and steps of one model, whose programs are compiled as they are first called."""

    def __init__(self, params: TransformerParams, cfg: ModelConfig, backend: Backend,
                 cache: ExpertCache) -> None:
        """Take parameters as `load` makes them."""
        self.cfg, self.backend = cfg, backend
        self.layers = Layers(params, cfg, backend, cache)
        self._ends = dataclasses.replace(params, stacks={})

    def prefill(self, prompts: Prompts, max_len: int) -> tuple[State, Array]:
        """Read prompts and choose each row's first token, as `decode.prefill` does."""
        x, segments = _embed_prompts(self._ends, prompts, backend=self.backend)
        x, past = self.layers.read(x, segments, np.asarray(segments) != 0, max_len)
        state, first = _begin(self._ends, prompts, x, max_len=max_len)
        return dataclasses.replace(state, cache=past), first

    def advance(self, state: State) -> tuple[State, Emitted]:
        """Run every row's newest token, as `programs.advance` does in one step."""
        past, state = state.cache, dataclasses.replace(state, cache=NONE)
        x, positions = _embed_newest(self._ends, state, backend=self.backend)
        x, past = self.layers.step(x, positions, past)
        state, emitted = _choose(self._ends, state, x)
        return dataclasses.replace(state, cache=past), emitted


@functools.partial(jax.jit, static_argnames="backend")
def _embed_prompts(p: TransformerParams, prompts: Prompts, *,
                   backend: Backend) -> tuple[Array, Array]:
    return transformer.embed(p, prompts.tokens, backend), decode.segments_of(prompts)


@functools.partial(jax.jit, static_argnames="max_len")
def _begin(p: TransformerParams, prompts: Prompts, x: Array, *,
           max_len: int) -> tuple[State, Array]:
    return decode.begin(p, prompts, x, NONE, max_len, 0)


@functools.partial(jax.jit, static_argnames="backend")
def _embed_newest(p: TransformerParams, state: State, *,
                  backend: Backend) -> tuple[Array, Array]:
    tokens, positions = decode.newest(state)
    return transformer.embed(p, tokens, backend), positions


@functools.partial(jax.jit, donate_argnames="state")
def _choose(p: TransformerParams, state: State, x: Array) -> tuple[State, Emitted]:
    """The next token of every row; emitted leaves lead with one step."""
    state, emitted = decode.choose(p, state, x)
    return state, jax.tree.map(lambda a: a[None], dataclasses.replace(emitted, logits=None))
