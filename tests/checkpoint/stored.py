"""A state of every kind of leaf, and stores that hold it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from dsjax import params
from dsjax.checkpoint.store import Store

EXTRA = {"loader": {"row": 3, "rng": [2**63, 0.1]}, "metrics_bytes": 12345, "name": "tiny \u00e9"}


class Moments(NamedTuple):
    count: Any
    mu: Any


@struct.dataclass
class Layer:
    w: Any
    bias: Any


@struct.dataclass
class State:
    step: Any
    params: Any
    opt: Any


def some_state(seed: int = 0, dim: int = 7) -> dict[str, Any]:
    """Leaves of many dtypes, NaN and -0 among them, in many classes, on devices and the host."""
    k = jax.random.key(seed)
    w = jax.random.normal(k, (5, dim))
    layer = Layer(w.at[0, 0].set(jnp.nan).at[0, 1].set(-0.0), None)
    low = [w.astype(jnp.bfloat16), w.astype(jnp.float8_e4m3fn), jnp.ones(3, jnp.float8_e8m0fnu)]
    opt = (Moments(jnp.int32(seed), {"layer": Layer(None, jnp.arange(3) > 1)}), low)
    host = {"ema": np.arange(6, dtype=np.float64).reshape(2, 3) / 7, "n": np.array(5, np.uint8)}
    return {"train": State(jnp.int32(seed), layer, opt), "host": host}


def assert_same(got: Any, want: Any) -> None:
    """Equal classes, names, homes, dtypes and bits."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for (name, a), (_, b) in zip(params.paths(got), params.paths(want)):
        assert isinstance(a, np.ndarray) == isinstance(b, np.ndarray), name
        assert (a.shape, a.dtype) == (b.shape, b.dtype), name
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), name


def abstract(state: Any) -> Any:
    """The request that gives `state` back."""

    def one(a):
        is_host = isinstance(a, np.ndarray)
        return np.zeros_like(a) if is_host else jax.ShapeDtypeStruct(a.shape, a.dtype)

    return jax.tree.map(one, state)


def written(folder: Path, *steps: int, keep: int = 3) -> Store:
    """A store that holds the states of these steps."""
    store = Store(folder, keep)
    for step in steps:
        store.save(step, some_state(step), EXTRA)
    store.wait()
    return store
