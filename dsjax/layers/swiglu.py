"""SwiGLU: the dense feed-forward, and the form of every expert. Axes: D model, F hidden."""

from __future__ import annotations

from flax import struct
from jax import Array

from dsjax.layers.backend import Backend
from dsjax.numerics.precision import Matrix
from dsjax.ops import swiglu as op
from dsjax.params import Role, spec


@struct.dataclass
class SwiGLUParams:
    """Gate and up side by side, so that one product reads x once."""

    w_gate_up: Matrix  # [D, 2, F], gate first
    w_down: Matrix  # [F, D]


def swiglu_specs(d_model: int, hidden_dim: int, role: Role = "ffn") -> SwiGLUParams:
    """Describe one SwiGLU."""
    return SwiGLUParams(
        w_gate_up=spec((d_model, 2, hidden_dim), ("embed", None, "hidden"), is_product=True,
                       parts=2, role=role),
        w_down=spec((hidden_dim, d_model), ("hidden", "embed"), is_product=True, role=role),
    )


def swiglu(p: SwiGLUParams, x: Array, backend: Backend) -> Array:
    """silu(x W_gate) * (x W_up), times W_down. x [..., D] -> [..., D]."""
    gate_up = backend.linear(x, p.w_gate_up)
    hidden = op.swiglu(backend.precision, gate_up.reshape(*x.shape[:-1], -1))
    return backend.linear(hidden, p.w_down)
