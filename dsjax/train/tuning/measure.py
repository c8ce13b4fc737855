"""The experts that a task uses, measured on its own rows (ESFT, arXiv 2407.01906, sec. 3.2).

Of expert i in a layer, over the real tokens of some rows:

    token share   choices of i / choices            (ESFT-Token)
    gate share    routing weights of i / all        (ESFT-Gate)

A layer's experts are taken from the largest share on until their sum is at least p. Routing is that
of the frozen model, and the rows are the first of the training data, completions and prompts alike.

Axes: L mixture layers, E experts.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from dsjax import params
from dsjax.config.run import RunConfig
from dsjax.config.sft import written
from dsjax.data.pack import Rows
from dsjax.layers.backend import Backend
from dsjax.layers.remat import keep_all
from dsjax.model import transformer, tuned
from dsjax.model.transformer import TransformerParams
from dsjax.parallel import mesh as meshes
from dsjax.train import sharding
from dsjax.train.corpus import Corpus
from dsjax.train.tuning.frozen import Frozen


def settled(run: RunConfig, corpus: Corpus, frozen: Frozen, backend: Backend, mesh: Mesh | None,
            say: Callable[[str], Any]) -> RunConfig:
    """The run with the experts that learn: those it names, or those that its rows use most.

    Says them, and how much of a model learns where a part does.
    """
    if run.experts is not None:
        run = _with_experts(run, corpus, frozen, backend, mesh)
        moe = run.model.moe
        assert run.experts is not None, "experts are chosen"
        assert moe is not None, "a mixture has experts"
        count = sum(map(len, run.experts.by_layer.values()))
        say(f"experts that learn: {count} of {moe.experts * run.model.moe_layers}, by layer "
            f"{run.experts.chosen}")
    if frozen.params is not None:
        learns, every = params.size(tuned.specs(run)), params.size(transformer.specs(run.model))
        say(f"{learns:,} numbers learn, {learns / every:.2%} of the model's")
    return run


def _with_experts(run: RunConfig, corpus: Corpus, frozen: Frozen, backend: Backend,
                  mesh: Mesh | None) -> RunConfig:
    assert run.experts is not None, "experts are chosen"
    if run.experts.chosen is None:
        assert frozen.params is not None, "experts are chosen among frozen ones"
        shares = measured(run, corpus.train, frozen.params, backend, mesh)
        run = dataclasses.replace(run, experts=dataclasses.replace(
            run.experts, chosen=written(chosen(run, shares))))
    return run


def measured(run: RunConfig, rows: Rows, p: TransformerParams, backend: Backend,
             mesh: Mesh | None) -> np.ndarray:
    """Share of each expert in its layer's tokens, or gates. [L, E], each layer sums to 1."""
    assert run.experts is not None, "shares are of experts"
    forward = dataclasses.replace(backend, remat=keep_all, unroll=1, keep_gates=True)
    where = None if mesh is None else meshes.sharding(mesh)
    program = jax.jit(functools.partial(_sums, run=run, backend=forward), out_shardings=where)
    total: Any = 0
    size = run.train.batch_size // run.train.microbatches
    for first in range(0, min(run.experts.rows, len(rows)), size):
        numbers = [i for i in range(first, first + size) if i < len(rows)]
        read = [rows[i] for i in numbers] + [_nothing(rows)] * (size - len(numbers))
        batch = sharding.put_rows({name: np.stack([row[name] for row in read])
                                   for name in read[0]}, mesh)
        loads, gates = program(p, batch.tokens, batch.segments)
        part = np.asarray(loads if run.experts.score == "token" else gates, np.float64)
        total = total + part
    return total / np.maximum(total.sum(axis=-1, keepdims=True), 1e-30)


def _nothing(rows: Rows) -> dict[str, np.ndarray]:
    return {name: np.zeros_like(a) for name, a in rows[0].items()}


def _sums(p: TransformerParams, tokens: Array, segments: Array, *, run: RunConfig,
          backend: Backend) -> tuple[Array, Array]:
    """Loads and gates of a batch, summed over its rows. [L, E] each."""
    p = backend.layout.gather_params(p, transformer.specs(run.model))
    stats = transformer.hidden(p, tokens[:, :-1], segments[:, :-1], run.model, backend).stats
    assert stats is not None, "a mixture has statistics"
    assert stats.gates is not None, "the backend keeps gates"
    return stats.loads.sum(axis=1), stats.gates.sum(axis=1)


def chosen(run: RunConfig, shares: np.ndarray) -> dict[int, tuple[int, ...]]:
    """Experts of each layer whose shares add up to the threshold, the largest first. [L, E] ->.

    Of equal shares the lower number is first. Sums that rounding leaves a little below are enough.
    """
    assert run.experts is not None, "a threshold is of experts"
    layers = [at for at in range(run.model.layers) if run.model.stack_of(at)[0].is_moe]
    found = {}
    for at, share in zip(layers, shares, strict=True):
        order = np.argsort(-share, kind="stable")
        enough = int((np.cumsum(share[order]) < run.experts.threshold - 1e-9).sum()) + 1
        found[at] = tuple(sorted(int(i) for i in order[:enough]))
    return found
