"""Bytes of parameters, operands, saved activations and optimizer state in float32, bf16 and FP8.

Nothing is allocated: what a training step holds is read off its abstract evaluation, with the
backend of a machine that multiplies codes (on a CPU, emulation holds weights as bfloat16 values).
Activations are what the layers' backward pass keeps at the remat policy of V3, in float32 for
float32 and in bfloat16 for the others. Beside each measured number stands the arithmetic: elements
from the config, times bytes.

Axes: L layers, T tokens, D model, Q and C latents, R rope, H heads, U value, F hidden, E experts.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import sys
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from configs import small, tiny
from dsjax.config.model import MLAConfig
from dsjax.config.run import RunConfig
from dsjax.layers.backend import single
from dsjax.layers.remat import policy
from dsjax.model import transformer
from dsjax.numerics import codes, gemm
from dsjax.numerics import precision as numerics
from dsjax.numerics.precision import Precision
from dsjax.ops.experts import CAPACITY_FACTOR
from dsjax.train import state
from experiments.common import command
from experiments.common.command import Asked
from experiments.fp8_vs_bf16 import STUDY

FP8 = gemm.precision(gemm.V3_1, codes.MATMUL)
TILE = 128


@dataclass(frozen=True)
class Form:
    """One precision: its products, activations, and bytes of an operand with and without scales."""

    precision: Precision
    activations: Any
    operand: int
    scale: int = 0  # bytes of one scale
    moments: str = "bfloat16"


PRECISIONS = {
    "float32": Form(numerics.FP32, jnp.float32, 4, moments="float32"),
    "bfloat16": Form(numerics.BF16, jnp.bfloat16, 2),
    "FP8": Form(FP8, jnp.bfloat16, 1, scale=1),
    "FP8, float32 scales": Form(gemm.precision(gemm.V3, codes.MATMUL), jnp.bfloat16, 1, 4),
}


def size(tree: Any) -> int:
    """Bytes of all arrays of a tree."""
    return sum(math.prod(a.shape) * a.dtype.itemsize for a in jax.tree.leaves(tree))


def measure(run: RunConfig, how: Form) -> dict[str, int]:
    """Bytes that a step of `run` holds."""
    run = dataclasses.replace(
        run, model=dataclasses.replace(run.model, mtp_depth=0),
        optimizer=dataclasses.replace(run.optimizer, moments=how.moments))
    specs = transformer.specs(run.model)
    held_state = state.abstract(run)
    operands = jax.eval_shape(lambda p: numerics.quantize_weights(p, specs, how.precision),
                              held_state.params)
    kept = residuals(run, how, held_state.params, operands)
    low, others = split(kept, run, how)
    return {
        "master parameters": size(held_state.params),
        "weights as products read them": size(operands),
        "cached inputs of SwiGLU and experts": size(low),
        "other saved activations": size(others),
        "optimizer state": size(held_state.opt),
    }


def residuals(run: RunConfig, how: Form, p: Any, operands: Any) -> list[jax.ShapeDtypeStruct]:
    """Arrays that the layers' backward pass keeps besides parameters and operands."""
    cfg, specs = run.model, transformer.specs(run.model)
    tokens = jnp.zeros((run.train.batch_size, run.train.seq_len), jnp.int32)
    backend = dataclasses.replace(single(how.precision, how.activations), remat=policy("v3"))

    def pull(p: Any, operands: Any) -> Any:
        def layers(p: Any) -> jax.Array:
            tree = numerics.attach(p, operands, specs)
            return transformer.hidden(tree, tokens, tokens + 1, cfg, backend).x

        return jax.vjp(layers, p)[1]

    found = jax.tree.leaves(jax.eval_shape(pull, p, operands))
    given = collections.Counter((a.shape, a.dtype) for a in jax.tree.leaves((p, operands)))
    given |= collections.Counter(
        (a.shape, jnp.dtype(jnp.uint8)) for a in jax.tree.leaves(operands))
    return [a for a in found if (a.shape, a.dtype) not in given]


def cached(run: RunConfig) -> list[tuple[int, ...]]:
    """Shapes of what V3 caches in 8 bits; the last dim is tiled."""
    cfg, (b, t) = run.model, (run.train.batch_size, run.train.seq_len)
    assert cfg.moe is not None, "both configs have experts"
    moe, layers = cfg.moe, cfg.moe_layers
    rows = math.ceil(b * t * moe.experts_per_token / moe.experts * CAPACITY_FACTOR / 8) * 8
    return [(cfg.dense_layers, b, t, 2 * cfg.dense_dim),
            (layers, b, t, 2 * moe.shared_experts * moe.expert_dim),
            (layers, moe.experts, rows, 2 * moe.expert_dim),
            (layers, b * t, cfg.d_model)]


def split(kept: list[jax.ShapeDtypeStruct], run: RunConfig,
          how: Form) -> tuple[list[jax.ShapeDtypeStruct], list[jax.ShapeDtypeStruct]]:
    """Split saved arrays: those cached in 8 bits where a precision has them, and the rest."""
    open_ = collections.Counter((shape, how.operand) for shape in cached(run))
    if how.scale:
        open_ += collections.Counter(
            ((*shape[:-1], math.ceil(shape[-1] / TILE)), how.scale) for shape in cached(run))
    low, others = [], []
    for a in kept:
        key = (a.shape, a.dtype.itemsize)
        (low if open_[key] else others).append(a)
        open_[key] -= bool(open_[key])
    assert not any(open_.values()), f"not kept for the backward pass: {+open_}"
    return low, others


def arithmetic(run: RunConfig, how: Form) -> dict[str, float]:
    """The same bytes from the config alone."""
    cfg = dataclasses.replace(run.model, mtp_depth=0)
    a, tokens = cfg.attention, run.train.batch_size * run.train.seq_len
    assert isinstance(a, MLAConfig), "both configs have latent attention"
    assert a.q_rank is not None, "both configs compress queries"
    leaves = jax.tree.leaves(transformer.specs(cfg))
    parameters = sum(math.prod(s.shape) for s in leaves)
    weights = sum(math.prod(s.shape) for s in leaves if s.is_product)
    entries = sum(math.prod(shape) for shape in cached(run))
    tiles = sum(math.prod(shape[:-1]) * math.ceil(shape[-1] / TILE) for shape in cached(run))
    wide = jnp.dtype(how.activations).itemsize
    layer = 2 * cfg.d_model + a.q_rank + a.kv_rank + a.rope_dim + a.heads * a.value_dim
    # A layer also keeps the softmax's sums and its tokens' choices of experts, the final norm its
    # input and its quotient: 4 bytes each.
    assert cfg.moe is not None, "both configs have experts"
    others = 4 * tokens * (cfg.layers * a.heads + cfg.moe_layers * cfg.moe.experts_per_token
                           + 2 * cfg.d_model) + tokens * cfg.layers * layer * wide
    return {
        "master parameters": 4 * parameters,
        "weights as products read them": weights * (how.operand + how.scale / TILE**2),
        "cached inputs of SwiGLU and experts": entries * how.operand + tiles * how.scale,
        "other saved activations": others,
        "optimizer state": 2 * parameters * jnp.dtype(how.moments).itemsize,
    }


def main(asked: Asked) -> None:
    """Measure both configs, write the record."""
    found: dict[str, Any] = {}
    rows = []
    for config in (tiny.config(), *(() if asked.is_quick else (small.config(),))):
        by_name = {name: (measure(config, how), arithmetic(config, how))
                   for name, how in PRECISIONS.items()}
        found[config.name] = {n: {"measured": m, "arithmetic": a} for n, (m, a) in by_name.items()}
        for part in by_name["float32"][0]:
            base = by_name["float32"][0][part]
            row = [config.name, part, f"{base / 2**20:.2f}"]
            for name in list(PRECISIONS)[1:]:
                mine = by_name[name][0][part]
                row.append(f"{mine / 2**20:.2f} ({100 * (mine / base - 1):+.1f} %)")
            worst = max(abs(m[part] / a[part] - 1) for m, a in by_name.values())
            rows.append([*row, f"{100 * worst:.2f} %"])
    columns = ["config", "MiB of", *PRECISIONS, "largest difference from the arithmetic"]
    asked.write("bytes",
                "FP8 operands and cached activations are 75 % below float32's, 74 % with scales",
                columns, rows, bytes=found)


if __name__ == "__main__":
    sys.exit(command.main(STUDY, "bytes"))
