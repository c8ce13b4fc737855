"""Log-probabilities of given texts: the one function that every score of a text reads.

A text is ids: a context, and a continuation whose tokens are scored. Texts are laid into a few
shapes, each compiled once: rows as long as a power of two up to the context, and as many rows as
make a batch of `TOKENS` a device. The shape follows from a text's own length, and within a shape
neither empty places nor neighbors change a number beyond the rounding of products whose rows stand
elsewhere: no token is dropped for lack of an expert's capacity (V2 report sec. 2.2.4: none at
evaluation), and attention does not leave a row.

Texts that differ in their last token alone, as the letters of a multiple choice do, share a row:
the last place has room for `RIVALS` of them.

Axes: B rows, T time, D model, R rivals, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from dsjax.config.model import ModelConfig, dropless
from dsjax.errors import UserError
from dsjax.infer import Model
from dsjax.infer.generate import ready
from dsjax.infer.offload.layers import Layers
from dsjax.layers.backend import Backend
from dsjax.model import transformer
from dsjax.model.transformer import TransformerParams
from dsjax.ops import token_loss
from dsjax.parallel import mesh as meshes
from dsjax.runtime import fit

TOKENS = 2048
"""Positions of a batch, for each device that holds rows."""
SHORTEST = 32
"""Positions of the shortest rows."""
RIVALS = 4
"""Last tokens that share a row."""
REMEDY = "lower --context, or share the model over more devices (--parallel.fsdp, .expert)"


@dataclass(frozen=True)
class Text:
    """Tokens to score, and those that stand before them."""

    context: tuple[int, ...]
    """At least one token, as the first of a text has nothing to be predicted from."""
    continuation: tuple[int, ...]


@dataclass(frozen=True)
class Scores:
    """Scores of a continuation."""

    logprobs: np.ndarray
    """[N] float32, in nats."""
    is_greedy: np.ndarray
    """[N] bool: the token is the likeliest, the first among equals."""
    cut: int = 0
    """Tokens of the context that had no room and were left out, from the left."""

    @property
    def total(self) -> float:
        """Log-probability of the whole continuation, summed in float64."""
        return float(self.logprobs.sum(dtype=np.float64))

    @property
    def is_all_greedy(self) -> bool:
        """True if greedy decoding would give the continuation."""
        return bool(self.is_greedy.all())


def of_hidden(p: TransformerParams, x: Array, ids: Array, backend: Backend) -> tuple[Array, Array]:
    """Log-probability of each place's token and the likeliest token, from hidden states.

    x [B, T, D] after the final norm; ids [B, T] int32 -> [B, T] float32 and int32. With ids
    [B, T, R], so are the log-probabilities. Products and sums are float32.
    """
    return token_loss.logprobs(x, p.head, ids, backend.loss_chunk, jnp.dtype(jnp.float32))


@struct.dataclass
class Rows:
    """A batch: position i predicts token i of `ids`, the last position of a row all its rivals."""

    tokens: Any  # [B, T] int32
    segments: Any  # [B, T] int32, 0 where a row is empty
    ids: Any  # [B, T] int32
    rivals: Any  # [B, R] int32
    last: Any  # [B] int32


@struct.dataclass
class Found:
    """Scores of a batch."""

    logprobs: Array  # [B, T]
    is_greedy: Array  # [B, T]
    rival_logprobs: Array  # [B, R]
    is_rival_greedy: Array  # [B, R]


def score_rows(p: TransformerParams, rows: Rows, cfg: ModelConfig, backend: Backend) -> Found:
    """Score a batch of rows; pure, for any jit. No token is dropped for lack of capacity."""
    x = transformer.hidden(p, rows.tokens, rows.segments, dropless(cfg), backend).x
    return _scored(p, x, rows, backend)


def _scored(p: TransformerParams, x: Array, rows: Rows, backend: Backend) -> Found:
    at = jnp.arange(x.shape[1], dtype=rows.last.dtype)[None] == rows.last[:, None]
    others = jnp.broadcast_to(rows.rivals[:, None], (*rows.ids.shape, rows.rivals.shape[1]))
    ids = jnp.where(at[..., None], others, rows.ids[..., None])
    found, likeliest = of_hidden(p, x, ids, backend)
    is_greedy = likeliest[..., None] == ids

    def at_last(a: Array) -> Array:
        return jnp.take_along_axis(a, rows.last[:, None, None], axis=1)[:, 0]

    made = Found(found[..., 0], is_greedy[..., 0], at_last(found), at_last(is_greedy))
    return jax.tree.map(lambda a: backend.layout.constrain(a, (None,) * a.ndim), made)


Row = tuple[tuple[int, ...], list[int]]
"""Tokens that the model reads, and the texts that end with one more."""


class Scorer:
    """A model that scores texts; each shape is compiled when a text first needs it."""

    def __init__(self, model: Model, context: int | None = None, tokens: int = TOKENS,
                 gather: Callable[[TransformerParams], TransformerParams] | None = None) -> None:
        """Take a model.

        context: positions of a row, by default the model's; tokens: positions of a batch, for each
        device; gather: makes parameters as they rest, which are set before each use (`params`),
        those of a pass.
        """
        self.context = model.context if context is None else context
        if self.context < 2:
            raise UserError(f"--context {self.context} has no room for a token and the one that "
                            "follows; use at least 2")
        self._model, self._vocab, self._tokens = model, model.cfg.vocab, tokens
        self._devices = 1 if model.mesh is None else model.mesh.size
        self._programs: dict[tuple[int, int], Callable[[Rows], Found]] = {}
        self._gather = gather or (lambda p: p)
        self.params, self._cfg = model.params, model.cfg
        if model.experts is None and gather is None:
            self.params, self._cfg = ready(model.params, model.cfg, model.backend)
        elif model.experts is not None:
            self._layers = Layers(model.params, model.cfg, model.backend, model.experts)

    @property
    def programs(self) -> int:
        """Shapes that were compiled."""
        return len(self._programs)

    def shape(self, length: int) -> tuple[int, int]:
        """Rows and positions of the batch that a text of so many positions is laid into."""
        positions = SHORTEST
        while positions < length:
            positions *= 2
        positions = min(positions, max(self.context, length))
        return max(self._tokens // positions, 1) * self._devices, positions

    def __call__(self, texts: Sequence[Text]) -> list[Scores]:
        """Score texts, in their order."""
        made: list[Scores | None] = [None] * len(texts)
        for i, scores in self.stream(texts):
            made[i] = scores
        return [scores for scores in made if scores is not None]

    def stream(self, texts: Sequence[Text],
               wanted: Collection[int] | None = None) -> Iterator[tuple[int, Scores]]:
        """Yield the number and the scores of each text, as batches are done; the longest first.

        wanted: numbers of the texts to score, by default all. Batches are laid out for all texts,
        and those that hold none of them are passed over, so that a text has its bits whichever
        others are wanted.
        """
        shared: dict[tuple[int, ...], list[int]] = {}
        for i, text in enumerate(texts):
            shared.setdefault(self._input(text, i), []).append(i)
        by_shape: dict[tuple[int, int], list[Row]] = {}
        for ids, group in shared.items():
            rows = [(ids, group[k : k + RIVALS]) for k in range(0, len(group), RIVALS)]
            by_shape.setdefault(self.shape(len(ids)), []).extend(rows)
        for shape in sorted(by_shape, key=lambda shape: -shape[1]):
            waiting = by_shape[shape]
            for k in range(0, len(waiting), shape[0]):
                batch = waiting[k : k + shape[0]]
                if wanted is None or any(i in wanted for _, group in batch for i in group):
                    scored = self._batch(shape, batch, texts)
                    yield from ((i, one) for i, one in scored if wanted is None or i in wanted)

    def _input(self, text: Text, i: int) -> tuple[int, ...]:
        """Tokens that the model reads, of a context that is cut from the left."""
        ids = (*text.context, *text.continuation)
        if not text.context or not text.continuation:
            raise UserError(f"text {i} has {len(text.context)} tokens of context and "
                            f"{len(text.continuation)} to score; both need at least one")
        if not 0 <= min(ids) <= max(ids) < self._vocab:
            raise UserError(f"text {i} has ids from {min(ids)} to {max(ids)}, but the model knows "
                            f"0 to {self._vocab - 1}; use the tokenizer it was trained with")
        if len(text.continuation) > self.context:
            raise UserError(f"text {i} has {len(text.continuation):,} tokens to score, but the "
                            f"context is {self.context:,}; raise --context, or cut it into windows")
        return ids[-(self.context + 1) :][:-1]

    def _batch(self, shape: tuple[int, int], rows: Sequence[Row],
               texts: Sequence[Text]) -> Iterator[tuple[int, Scores]]:
        """Score the rows of a batch."""
        tokens, ids = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        segments, last = np.zeros(shape, np.int32), np.zeros(shape[0], np.int32)
        rivals = np.zeros((shape[0], RIVALS), np.int32)
        for row, (read, group) in enumerate(rows):
            length = len(read)
            tokens[row, :length], segments[row, :length] = read, 1
            ids[row, : length - 1], last[row] = read[1:], length - 1
            rivals[row, : len(group)] = [texts[i].continuation[-1] for i in group]
        found = self._run(shape, Rows(tokens, segments, ids, rivals, last))
        for row, (read, group) in enumerate(rows):
            for at, i in enumerate(group):
                own = slice(len(read) - len(texts[i].continuation), len(read) - 1)
                whole = len(texts[i].context) + len(texts[i].continuation) - 1
                yield i, Scores(np.append(found.logprobs[row, own], found.rival_logprobs[row, at]),
                                np.append(found.is_greedy[row, own],
                                          found.is_rival_greedy[row, at]), whole - len(read))

    def _run(self, shape: tuple[int, int], rows: Rows) -> Found:
        """Run a batch, which every process has, and read what it found."""
        model = self._model
        count, positions = shape
        room = {"hidden states": 4 * count * positions * model.cfg.d_model,
                "logits": 4 * count * min(positions, model.backend.loss_chunk) * model.cfg.vocab}
        with fit.refusing(f"scoring {count} rows of {positions:,} positions", room, REMEDY):
            if shape not in self._programs:
                self._programs[shape] = self._compiled(rows)
            # One at a time: programs queued on devices that share a CPU's threads can wait forever
            # for each other's collectives.
            return jax.device_get(self._programs[shape](rows))

    def _compiled(self, rows: Rows) -> Callable[[Rows], Found]:
        model = self._model
        if model.experts is not None:
            return self._by_layers

        def score(p: TransformerParams, rows: Rows) -> Found:
            return score_rows(self._gather(p), rows, self._cfg, model.backend)

        program = jax.jit(score).lower(self.params, self._put(rows)).compile()
        return lambda rows: program(self.params, self._put(rows))

    def _put(self, rows: Rows) -> Rows:
        """Lay rows over the devices."""
        if self._model.mesh is None:
            return jax.tree.map(jnp.asarray, rows)
        where = meshes.sharding(self._model.mesh, meshes.AXES)
        return jax.tree.map(lambda a: jax.make_array_from_callback(
            a.shape, where, lambda index: a[index]), rows)

    def _by_layers(self, rows: Rows) -> Found:
        """Run a model whose experts lie in a cache, layer by layer."""
        model, there = self._model, np.asarray(rows.segments) != 0
        rows = self._put(rows)
        ends = dataclasses.replace(self.params, stacks={})
        x = _embedded(ends, rows.tokens, backend=model.backend)
        x, _ = self._layers.read(x, rows.segments, there, x.shape[1])
        return _ended(ends, x, rows, backend=model.backend)


@functools.partial(jax.jit, static_argnames="backend")
def _embedded(p: TransformerParams, tokens: Array, *, backend: Backend) -> Array:
    return transformer.embed(p, tokens, backend)


@functools.partial(jax.jit, static_argnames="backend")
def _ended(p: TransformerParams, x: Array, rows: Rows, *, backend: Backend) -> Any:
    return _scored(p, x, rows, backend)
