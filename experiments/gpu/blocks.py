"""Ceilings of a card and the pieces of a step: attention, experts' products, FP8 products.

Checks compare with float64 on the host or with the plain form; what they are held to stands in the
row. Axes: B batch, H heads, T time, E experts, C rows of an expert.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from dsjax.cli.benches import gemm
from dsjax.kernels import cudnn, flash
from dsjax.ops import attention as op

BF16_ERROR = 6 * 2**-9
"""Relative error of a product chain of bfloat16 operands: each is rounded once by 2^-9, as are
probabilities, their gradients, outputs and output gradients."""


@dataclass(frozen=True)
class Row:
    """One number: of which part and form, its unit, the bound it is held to, and if it holds."""

    part: str
    form: str
    value: Any
    unit: str
    bound: Any = None
    holds: bool | None = None

    @property
    def cells(self) -> list[Any]:
        """Cells of a table's row."""
        held = {True: "yes", False: "no", None: ""}[self.holds]
        bound = "" if self.bound is None else self.bound
        return [self.part, self.form, _short(self.value), self.unit, _short(bound), held]


def _short(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def at_most(part: str, form: str, value: float, unit: str, bound: float) -> Row:
    """A number that is held to a bound; one that is none does not hold."""
    return Row(part, form, value, unit, bound, bool(value <= bound))


def seconds(call: Callable[[], Any], calls: int = 10, rounds: int = 5) -> float:
    """Median over rounds of the time of a call, after one that is not counted."""
    jax.block_until_ready(call())
    taken = []
    for _ in range(rounds):
        began = time.perf_counter()
        for _ in range(calls):
            made = call()
        jax.block_until_ready(made)
        taken.append((time.perf_counter() - began) / calls)
    return statistics.median(taken)


def draw(seed: int, *shape: int, dtype: Any = jnp.bfloat16) -> Array:
    """Normal numbers on the device."""
    return jax.random.normal(jax.random.key(seed), shape, jnp.float32).astype(dtype)


def ceilings(is_small: bool) -> Iterator[Row]:
    """Rates of plain square products and of a copy in memory."""
    size = 256 if is_small else 8192
    for dtype in (jnp.bfloat16, jnp.float8_e4m3fn):
        a, b = draw(0, size, size, dtype=dtype), draw(1, size, size, dtype=dtype)
        product = jax.jit(lambda a, b: lax.dot_general(
            a, b, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32))
        exact = np.asarray(a, np.float64)[:256] @ np.asarray(b, np.float64).T
        yield at_most("ceilings", f"{jnp.dtype(dtype).name} product, error",
                      _error(product(a[:256], b), exact), "relative", 1e-3)
        if not is_small:
            taken = seconds(functools.partial(product, a, b))
            yield Row("ceilings", f"{jnp.dtype(dtype).name} product", 2 * size**3 / taken / 1e12,
                      "TFLOP/s")
    if not is_small:
        x = jnp.zeros(1 << 30, jnp.bfloat16)
        taken = seconds(functools.partial(jax.jit(jnp.copy), x))
        yield Row("ceilings", "copy, read and written", 2 * x.nbytes / taken / 1e9, "GB/s")


def _error(got: Any, wanted: Any) -> float:
    got, wanted = np.asarray(got, np.float64), np.asarray(wanted, np.float64)
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))


def attention(is_small: bool) -> Iterator[Row]:
    """Blocks and the kernel: errors against float64, and times with one and four documents a row.

    Without a GPU the kernel is the twin of its contract.
    """
    b, h, t, n, u = (1, 2, 64, 24, 16) if is_small else (8, 16, 2048, 192, 128)
    ends = (t // 7, t // 2, 3 * t // 4)
    documents = 1 + sum((jnp.arange(t) >= end).astype(jnp.int32) for end in ends)
    rows = {"one document": jnp.ones((b, t), jnp.int32),
            "four documents": jnp.broadcast_to(documents[None], (b, t)).astype(jnp.int32)}
    plain = functools.partial(op.attend, is_low=True)
    kernel = cudnn.CUDNN if jax.devices()[0].platform == "gpu" else cudnn.TWIN
    q, k, v, d = (draw(i, b, h, t, size) for i, size in enumerate((n, n, u, u)))
    for name, segments in rows.items():
        choice = flash.Choice(kernel, plain, 1 if name == "one document" else 16)
        forms = {"blocks": plain, "kernel": functools.partial(flash.attend, choice=choice)}
        some = (slice(1), slice(2), slice(256))  # what float64 is computed of
        wanted = _exact_attention(*(a[some] for a in (q, k, v, d)), segments[:1, :256], n**-0.5)
        for form, attend in forms.items():
            both = jax.jit(functools.partial(_both, attend, scale=n**-0.5))
            got = both(*(a[some] for a in (q, k, v, d)), segments[:1, :256])
            for what, one, exact in zip(("out", "dq", "dk", "dv"), got, wanted, strict=True):
                yield at_most("attention", f"{form}, {name}, {what}", _error(one, exact),
                              "relative", BF16_ERROR)
            if not is_small:
                forward = jax.jit(functools.partial(attend, scale=n**-0.5))
                yield Row("attention", f"{form}, {name}, forward",
                          1e3 * seconds(lambda f=forward, s=segments: f(q, k, v, s)), "ms")
                yield Row("attention", f"{form}, {name}, both",
                          1e3 * seconds(lambda f=both, s=segments: f(q, k, v, d, s)), "ms")


def _both(attend: Callable[..., Array], q: Array, k: Array, v: Array, d: Array, segments: Array,
          scale: float) -> tuple[Array, ...]:
    out, pull = jax.vjp(lambda q, k, v: attend(q, k, v, segments, scale), q, k, v)
    return out, *pull(d)


def _exact_attention(q: Array, k: Array, v: Array, d: Array, segments: Array,
                     scale: float) -> list[np.ndarray]:
    """Output and gradients in float64, on the host."""
    host = jax.devices("cpu")[0]
    arrays = [np.asarray(a, np.float64) for a in (q, k, v, d)]
    with jax.enable_x64(True), jax.default_device(host):
        made = jax.jit(functools.partial(_both, op.attend_plain, scale=scale))(
            *(jax.device_put(a, host) for a in arrays),
            jax.device_put(np.asarray(segments), host))
    return [np.asarray(a) for a in made]


def experts(is_small: bool) -> Iterator[Row]:
    """Products of experts: one batched product, and jax's ragged kernel on uneven groups."""
    e, c, k, n = (4, 64, 64, 128) if is_small else (32, 3072, 2048, 2048)
    rows, weights = draw(0, e * c, k), draw(1, e, k, n) * k**-0.5
    batched = jax.jit(lambda a, w: jnp.einsum(
        "eck,ekn->ecn", a.reshape(e, c, k), w, preferred_element_type=jnp.float32))
    flop = 2.0 * e * c * k * n
    exact = np.asarray(rows[:c], np.float64) @ np.asarray(weights[0], np.float64)
    yield at_most("experts", "batched product, error", _error(batched(rows, weights)[0], exact),
                  "relative", 1e-3)
    if is_small:
        return
    yield Row("experts", "batched product",
              flop / seconds(lambda: batched(rows, weights)) / 1e12, "TFLOP/s")
    from jax.experimental.pallas.ops.gpu import ragged_dot_mgpu

    shares = np.random.default_rng(0).dirichlet(np.full(e, 20.0))
    sizes = np.floor(shares * e * c).astype(np.int32)
    sizes[-1] += e * c - sizes.sum()
    ragged = jax.jit(functools.partial(
        ragged_dot_mgpu.ragged_dot, block_m=192, block_n=128, block_k=64,
        max_concurrent_steps=4, grid_block_n=16))
    groups = jnp.asarray(sizes)
    got = ragged(rows, weights, group_sizes=groups)[: sizes[0]]
    exact = np.asarray(rows[: sizes[0]], np.float64) @ np.asarray(weights[0], np.float64)
    yield at_most("experts", "ragged product of uneven groups, error", _error(got, exact),
                  "relative", BF16_ERROR)
    yield Row("experts", "ragged product of uneven groups",
              flop / seconds(lambda: ragged(rows, weights, group_sizes=groups)) / 1e12, "TFLOP/s")


def fp8(is_small: bool) -> Iterator[Row]:
    """The block-scaled product beside bfloat16's, and quantization in one pass of XLA."""
    shape = (128, 256, 128) if is_small else (4096, 7168, 4096)
    found = gemm.compare(*shape, rounds=1 if is_small else 5, calls=1 if is_small else 20)
    yield at_most("fp8", "product, of the largest entry", found["difference"], "relative", 1e-3)
    if is_small:
        return
    for name, form in found["forms"].items():
        yield Row("fp8", name, form["tflop_s"], "TFLOP/s")
    from dsjax.numerics import scaled

    x = draw(0, 16384, 7168)
    for tile in ((1, 128), (128, 1)):
        quantize = jax.jit(lambda x, t=tile: scaled.quantize(x, t, True))
        taken = seconds(functools.partial(quantize, x))
        yield Row("fp8", f"quantize to {tile[0]}x{tile[1]}", x.size * 3 / taken / 1e9, "GB/s")
