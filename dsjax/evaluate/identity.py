"""Identity of a model in a folder: results of one are not continued with another."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from dsjax import disk, params, weights
from dsjax.checkpoint import files, store
from dsjax.infer import Model

UNSIGNED = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


def of(folder: Path | str, model: Model) -> dict[str, Any]:
    """Name, config, tokenizer and parameters of a model, and the step of a run.

    Parameters are those on the devices. Where experts are cached they stay in files, which count by
    `weights.identity`.
    """
    folder = Path(folder)
    config = disk.read_bytes(folder / "config.json", weights.REMEDY)
    found = {"name": folder.resolve().name,
             "config": hashlib.sha256(config).hexdigest()[:16],
             "tokenizer": model.tokenizer.fingerprint,
             "parameters": fingerprint(model.params)}
    if not weights.is_released(folder):
        return found | {"step": max(files.steps(folder / store.CHECKPOINTS), default=None)}
    return found | {"files": weights.identity(folder)}


def fingerprint(tree: Any) -> str:
    """Sixteen hex digits of all numbers of a tree, the same on every layout of devices."""
    sums = [(name, leaf.shape, str(leaf.dtype), int(_sum(leaf)))
            for name, leaf in params.paths(tree)]
    return hashlib.sha256(repr(sums).encode()).hexdigest()[:16]


@jax.jit
def _sum(leaf: Array) -> Array:
    """Sum of bits * (2 i + 1) over all numbers i, modulo 2^32: exact in any order."""
    bits = lax.bitcast_convert_type(leaf, UNSIGNED[leaf.dtype.itemsize]).astype(jnp.uint32)
    weight = jnp.ones(leaf.shape, jnp.uint32)
    stride = 2
    for dim in reversed(range(leaf.ndim)):
        step = np.uint32(stride % 2**32)
        weight += lax.broadcasted_iota(jnp.uint32, leaf.shape, dim) * step
        stride *= leaf.shape[dim]
    return jnp.sum(bits * weight, dtype=jnp.uint32)
