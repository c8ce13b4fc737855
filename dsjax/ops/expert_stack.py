"""Matrices of experts one after another, of which one at a time is read or replaced.

    w[s] = operand of the expert in slot s

Numbers of fewer than 32 bits are held as unsigned integers of the same bits: a CPU's compiler has
no slice of narrow floats, so that taking one expert, or writing one, would first widen all.

Axes: S slots, D model, F expert hidden.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array, lax

from dsjax.numerics.precision import Matrix, Operand, Precision, Weight
from dsjax.numerics.scaled import Scaled
from dsjax.params import Tree

BITS = {1: jnp.uint8, 2: jnp.uint16}


@struct.dataclass
class Stack:
    """Matrices [S, K, ...], each as stored or as products read it."""

    bits: Operand  # leaves [S, ...]
    dtypes: tuple[str, ...] = struct.field(pytree_node=False)
    """Dtypes of the leaves' numbers, in order."""
    is_operand: bool = struct.field(pytree_node=False)
    """False of matrices as they are stored, plain or resting in FP8."""
    parts: int = struct.field(pytree_node=False)
    """Matrices side by side in one: 2 of gate and up."""

    @property
    def count(self) -> int:
        """Slots, S."""
        return jax.tree.leaves(self.bits)[0].shape[0]

    def of(self, slot: Array, precision: Precision) -> Operand:
        """One slot's matrix [K, N] as products read it; made of the one alone."""
        bits = jax.tree.map(
            lambda a: lax.dynamic_index_in_dim(a, slot, 0, keepdims=False), self.bits)
        leaves, tree = jax.tree.flatten(bits)
        one = jax.tree.unflatten(tree, [_numbers(a, d) for a, d in zip(leaves, self.dtypes)])
        return one if self.is_operand else as_operand(one, precision, self.parts)


def stack(w: Matrix, parts: int) -> Stack:
    """Matrices [S, K, ...] as a stack, in the form in which they are held."""
    held = w.quantized if isinstance(w, Weight) else w
    dtypes = tuple(str(a.dtype) for a in jax.tree.leaves(held))
    return Stack(_bits(held), dtypes, isinstance(w, Weight), parts)


def as_operand(w: Array | Scaled, precision: Precision, parts: int) -> Operand:
    """A matrix [K, ...] that is stored, plain or resting in FP8, as products read it."""
    if isinstance(w, Scaled):
        return precision.from_codes(w)
    return precision.quantize_weight(w.reshape(w.shape[0], -1), parts)


def _bits(tree: Tree) -> Tree:
    return jax.tree.map(
        lambda a: lax.bitcast_convert_type(a, BITS[a.dtype.itemsize])
        if a.dtype.itemsize in BITS else a, tree)


def _numbers(bits: Array, dtype: str) -> Array:
    return bits if str(bits.dtype) == dtype else lax.bitcast_convert_type(bits, jnp.dtype(dtype))
