"""Memory order of matmul operands on the CPU, where it decides which kernel runs.

XLA's fast CPU matmul reads row-major operands and writes a row-major result. Other orders cost or
break (jax 0.10.2, `experiments/speed`): a bfloat16 product that sums over the rows of its first
operand, as every weight's gradient does, converts both to float32 and runs at a third of the speed;
and one whose result is only read transposed compiles but fails when it runs ("Unsupported element
type for DotThunk"). So narrow operands are transposed in memory first, and results are pinned. On
other platforms nothing is done.
"""

from __future__ import annotations

from jax import Array, lax
from jax.experimental.layout import Layout, with_layout_constraint


def row_major(x: Array) -> Array:
    """The same array, on CPU laid out with its last dim contiguous."""
    return lax.platform_dependent(x, cpu=_pinned, default=_unchanged)


def _pinned(x: Array) -> Array:
    return with_layout_constraint(x, Layout(tuple(range(x.ndim))))


def _unchanged(x: Array) -> Array:
    return x
