"""Flash attention of NVIDIA's cuDNN, through jax's own call of it, and its plain twin.

XLA does not fuse attention in blocks on a GPU; cuDNN's kernel is kept by the vendor for each of
its GPUs, and jax calls it and knows what it refuses, so none is written here. jax's public function
has no packed documents and keeps its statistics to itself: the module behind it is called, by the
names that it has in jax 0.10 and 0.11.

Documents, as jax hands them to cuDNN (jax._src.cudnn.fused_attention_stablehlo):

- `q_offsets` [B, M + 1] are starts within a row and -1 where no document is. They are moved to the
  front over all rows and made absolute; the end of the last becomes B T. An end in a row's last
  place would be read as one more start, and shift every document of the rows after it;
- `q_seqlen` [B, M] are their tokens, -1 where there is none, moved likewise;
- cuDNN finds a token at offset x H x N in queries, keys, values and outputs alike, so all four have
  heads of one size and as many of them.

Axes: B batch, T time, H heads, N channels, M documents a row may have.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from dsjax.kernels.flash import Documents, Flash

VERSION = 91000  # of cuDNN, that a machine which is not here is taken to have
CALL = "__cudnn$fmha"  # begins the names of its calls in a program


def forward(q: Array, k: Array, v: Array, documents: Documents | None = None,
            scale: float = 1.0) -> tuple[Array, Array]:
    """The kernel's forward pass, [B, T, H, N] bfloat16 each: output, and its statistics."""
    module, arrays, choices = _arguments(q, documents, scale)
    return module._dot_product_attention_fwd_rule(q, k, v, *arrays, *choices)[0]


def backward(q: Array, k: Array, v: Array, documents: Documents | None,
             kept: tuple[Array, Array], d_out: Array,
             scale: float) -> tuple[Array, Array, Array]:
    """The kernel's backward pass: gradients of q, k and v; `kept` is statistics and output."""
    module, arrays, choices = _arguments(q, documents, scale)
    gradients = module._dot_product_attention_bwd_rule(
        *choices, (q, k, v, *arrays, *kept), (d_out, None))
    return gradients[:3]


def _arguments(q: Array, documents: Documents | None, scale: float) -> tuple[Any, ...]:
    """jax's module, and the arguments of its two rules: arrays, then choices."""
    from jax._src.cudnn import fused_attention_stablehlo as module

    none = jnp.zeros(0, q.dtype)
    mask, told = module.MaskType.CAUSAL, (none,) * 4
    if documents is not None:
        mask = module.MaskType.PADDING_CAUSAL
        told = (documents.lengths, documents.lengths, documents.starts, documents.starts)
    arrays = (none, *told, none, none)  # no bias, no pages
    has_bias, seed, dropout, window, gives_statistics = (False, False), 42, 0.0, None, True
    layout = module.AttentionLayout.BTNH.value
    choices = (scale, seed, dropout, has_bias, mask, layout, window, module.check_cudnn_version(),
               gives_statistics)
    return module, arrays, choices


CUDNN = Flash(forward, backward)


@contextlib.contextmanager
def of_hopper() -> Iterator[None]:
    """Trace for a Hopper GPU that is not here: jax asks the machine it is on what it can do."""
    from jax._src.cudnn import fused_attention_stablehlo as module

    answers: dict[str, Any] = {
        "check_cudnn_version": lambda: VERSION, "check_compute_capability": lambda _: True,
        "is_cuda_compute_capability_equal": lambda capability: capability == "9.0"}
    asked = {name: getattr(module, name) for name in answers}
    for name, answer in answers.items():
        setattr(module, name, answer)
    try:
        yield
    finally:
        for name, own in asked.items():
            setattr(module, name, own)


def _owners(q: Array, documents: Documents | None) -> tuple[Array, Array]:
    """The document of each token of all rows, [B T], and the token's place among all: -1, none.

    Read as cuDNN reads them: from one list of absolute starts and one of lengths.
    """
    rows, length = q.shape[:2]
    at = jnp.arange(rows * length, dtype=jnp.int32)
    if documents is None:
        return at // length, at
    first = jnp.arange(rows, dtype=jnp.int32)[:, None] * length
    absolute = jnp.where(documents.starts >= 0, documents.starts + first, -1).reshape(-1)
    most = documents.lengths.size
    starts = _to_front(absolute, rows * length)[:most]
    lengths = _to_front(documents.lengths.reshape(-1), 0)
    mine = (at[:, None] >= starts[None]) & (at[:, None] < (starts + lengths)[None])
    return jnp.where(mine.any(1), lax.argmax(mine, 1, jnp.int32), -1), at


def _to_front(a: Array, rest: int) -> Array:
    order = jnp.argsort(a < 0, stable=True)
    return jnp.where(a[order] >= 0, a[order], rest)


def _twin(q: Array, k: Array, v: Array, documents: Documents | None,
          scale: float) -> tuple[Array, Array, Array]:
    """Output, probabilities' log denominators and the tokens of documents, tokens in one list."""
    wide = jnp.float64 if q.dtype == jnp.float64 else jnp.float32
    owner, at = _owners(q, documents)
    flat = [a.reshape(-1, *a.shape[2:]).astype(wide) for a in (q, k, v)]
    scores = jnp.einsum("thn,shn->hts", flat[0], flat[1], precision="highest") * scale
    may = (owner[:, None] == owner[None]) & (at[:, None] >= at[None]) & (owner >= 0)[None]
    scores = jnp.where(may[None], scores, -1e30)
    log_total = jax.nn.logsumexp(scores, axis=-1)
    weights = jnp.where(may[None], jax.nn.softmax(scores, axis=-1), 0)
    out = jnp.einsum("hts,shn->thn", weights, flat[2], precision="highest")
    return out.reshape(q.shape), log_total, (owner >= 0).reshape(*q.shape[:2], 1, 1)


def twin_forward(q: Array, k: Array, v: Array, documents: Documents | None = None,
                 scale: float = 1.0) -> tuple[Array, Array]:
    """The contract of `forward` written out, every score at once; NaN where it is undefined."""
    out, log_total, is_mine = _twin(q, k, v, documents, scale)
    return jnp.where(is_mine, out, jnp.nan).astype(q.dtype), log_total


def twin_backward(q: Array, k: Array, v: Array, documents: Documents | None,
                  kept: tuple[Array, Array], d_out: Array,
                  scale: float) -> tuple[Array, Array, Array]:
    """The contract of `backward` written out; what the forward pass kept is made again."""
    is_mine = _twin(q, k, v, documents, scale)[2]
    d_out = jnp.where(is_mine, d_out, 0)
    made = functools.partial(_twin, documents=documents, scale=scale)
    found = jax.vjp(lambda *a: made(*a)[0].astype(d_out.dtype), q, k, v)[1](d_out)
    dq, dk, dv = (jnp.where(is_mine, a, jnp.nan) for a in found)
    return dq, dk, dv


TWIN = Flash(twin_forward, twin_backward)
"""For tests, and for machines without the kernel: as much memory as scores take."""
