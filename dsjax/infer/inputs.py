"""Requests of the host, as arrays where the programs read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from dsjax.infer.decode import Prompts
from dsjax.infer.sample import Sampling, sampling_params
from dsjax.parallel import mesh as meshes
from dsjax.params import key_of

LEAST = 16  # prompts are padded to a power of two from here on, so that few programs are compiled


def of_prompts(prompts: Sequence[Sequence[int]], sampling: Sequence[Sampling],
               mesh: Mesh | None) -> Prompts:
    """Prompts as a batch, rows cut over the devices of a mesh.

    Rows are filled up to a multiple of the devices with prompts of one token, continued greedily.
    """
    fill = _up(len(prompts), mesh) - len(prompts)
    prompts, sampling = [*prompts, *[[0]] * fill], [*sampling, *[Sampling(temperature=0)] * fill]
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    tokens = np.zeros((len(prompts), max(LEAST, 1 << (int(lengths.max()) - 1).bit_length())),
                      np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
    keys = _keys([row.seed for row in sampling])
    here = Prompts(jnp.asarray(tokens), jnp.asarray(lengths), keys, sampling_params(sampling))
    return here if mesh is None else jax.tree.map(lambda a: _cut(a, mesh), here)


def rows_here(count: int, mesh: Mesh | None) -> int:
    """Rows of a batch in the memory of this process's first device; its CPU devices share one."""
    if mesh is None:
        return count
    local = [d for d in mesh.devices.flat if d.process_index == jax.process_index()]
    return _up(count, mesh) // mesh.size * (len(local) if local[0].platform == "cpu" else 1)


def _up(count: int, mesh: Mesh | None) -> int:
    """Rows up to a multiple of the devices."""
    return count if mesh is None else -(-count // mesh.size) * mesh.size


def _keys(seeds: Sequence[int]) -> Array:
    """One key a row [B], of its seed and place."""
    roots: Any = {seed: key_of(seed) for seed in seeds}
    if len(roots) == 1:
        return jax.vmap(jax.random.fold_in, (None, 0))(roots[seeds[0]], jnp.arange(len(seeds)))
    by_row = jnp.stack([roots[seed] for seed in seeds])
    return jax.vmap(jax.random.fold_in)(by_row, jnp.arange(len(seeds)))


def _cut(a: Array, mesh: Mesh) -> Array:
    """An array that every process has, its rows cut over the mesh."""
    if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_cut(jax.random.key_data(a), mesh))
    host, where = np.asarray(a), meshes.sharding(mesh, meshes.AXES)
    return jax.make_array_from_callback(host.shape, where, lambda index: host[index])
