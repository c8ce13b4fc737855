"""Attention through a vendor's kernel is the plain form: layout, padding, documents and gradients.

The kernel's contract is written out in its twin, which leaves NaN where the kernel's output is
undefined and reads documents from lists over all rows, as jax hands them to cuDNN (`jax`'s own
arithmetic is run beside it). In float64 the two then differ by rounding only. For a CUDA platform
both passes lower to cuDNN's calls without a device.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsjax.kernels import cudnn, flash
from dsjax.kernels.flash import Choice, attend
from dsjax.ops.attention import attend_plain
from tests.agreement import pulled

B, H, T, N, U = 3, 2, 12, 6, 5
SCALE = 0.4
ONE = [[1] * 12, [1] * 7 + [0] * 5, [0] * 12]
PACKED = [[1] * 3 + [2] * 4 + [3] * 5, [0, 0, 1, 1, 1, 0, 2, 2, 2, 2, 3, 0], [5] * 12]
MANY = [[1, 2, 3, 4] * 1 + [5] * 8, [1] * 12, [0] * 12]
APART = [[1, 1, 2, 2, 1, 1, 0, 0, 0, 0, 0, 0], [1] * 12, [1] * 12]


def by(form, segments):
    """Output and gradients of a form in float64, of rows [B, T] of segments."""
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((2, B, H, T, N))
    v, d_out = rng.standard_normal((2, B, H, T, U))
    rows = np.asarray(segments, np.int32)
    with jax.enable_x64(True):
        y, gradients = pulled(
            lambda q, k, v: form(q, k, v, jnp.asarray(rows), SCALE), d_out, q, k, v)
    return y, *gradients


def twin(documents, plain=attend_plain):
    """The wrapper around the twin of cuDNN's contract."""
    return functools.partial(
        attend, choice=Choice(cudnn.TWIN, plain, documents, jnp.dtype("float64")))


def nothing(q, k, v, segments, scale):
    """A plain form that must not have been needed."""
    return jnp.full_like(v, jnp.nan)


@pytest.mark.parametrize(("segments", "documents"), [
    (ONE, 1), (ONE, 2), (PACKED, 3), (PACKED, 8), (MANY, 5),
], ids=["causal rows", "few", "packed", "with places free", "many"])
def test_the_kernel_s_contract_gives_the_plain_output_and_gradients(segments, documents):
    for got, wanted in zip(by(twin(documents, nothing), segments), by(attend_plain, segments)):
        np.testing.assert_allclose(got, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("segments", "documents"), [
    (PACKED, 1), (MANY, 4), (APART, 8), ([[0] + [1] * 11, [1] * 12, [1] * 12], 1),
], ids=["documents in causal rows", "one too many", "one in two parts", "padding first"])
def test_rows_that_the_kernel_cannot_say_go_to_the_plain_form(segments, documents):
    for got, wanted in zip(by(twin(documents), segments), by(attend_plain, segments)):
        np.testing.assert_allclose(got, wanted, rtol=1e-10, atol=1e-12)
    assert np.isnan(by(twin(documents, nothing), segments)[0]).any()


def test_documents_are_starts_and_lengths_without_an_end():
    found, can_say = flash._documents(jnp.asarray(PACKED, jnp.int32), 4)
    assert bool(can_say)
    np.testing.assert_array_equal(
        found.starts, [[0, 3, 7, -1, -1], [2, 6, 10, -1, -1], [0, -1, -1, -1, -1]])
    np.testing.assert_array_equal(found.lengths, [[3, 4, 5, -1], [3, 4, 1, -1], [12, -1, -1, -1]])


def test_jax_hands_cudnn_the_documents_that_were_meant():
    module = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    found, _ = flash._documents(jnp.asarray(PACKED, jnp.int32), 4)
    q = jnp.zeros((B, T, H, 8), jnp.bfloat16)
    lengths, _, starts, _ = module._fix_seqlen_offsets(
        found.lengths, found.lengths, found.starts, found.starts, q, q)
    wanted = [0, 3, 7, T + 2, T + 6, T + 10, 2 * T]
    np.testing.assert_array_equal(starts.reshape(-1)[:7] // (H * 8), wanted)
    assert (starts.reshape(-1)[7:] == B * T * H * 8).all()
    np.testing.assert_array_equal(lengths.reshape(-1), [3, 4, 5, 3, 4, 1, 12] + [0] * 5)


def test_an_end_among_the_starts_shifts_the_documents_of_later_rows():
    found, _ = flash._documents(jnp.asarray(PACKED, jnp.int32), 4)
    ended = found._replace(starts=found.starts.at[0, 3].set(T))
    owners = [cudnn._owners(jnp.zeros((B, T, H, 8)), d)[0].reshape(B, T) for d in (found, ended)]
    np.testing.assert_array_equal(owners[0][0], owners[1][0])
    np.testing.assert_array_equal(owners[0][1], [-1, -1, 3, 3, 3, -1, 4, 4, 4, 4, 5, -1])
    assert (owners[0][1] != owners[1][1]).any()


def test_in_bfloat16_gradients_are_within_its_rounding_of_float64():
    """Operands are rounded once (2^-9 each), outputs and gradients once more, and d_out."""
    form = functools.partial(attend, choice=Choice(cudnn.TWIN, nothing, 3))
    for got, wanted in zip(by(form, PACKED), by(attend_plain, PACKED)):
        assert np.linalg.norm(got - wanted) < 6 * 2**-9 * np.linalg.norm(wanted)


def lowered(documents, dims=(192, 128)):
    """The program of both passes for a CUDA platform, as text."""
    n, u = dims
    shapes = [jax.ShapeDtypeStruct((2, 4, 256, size), jnp.bfloat16) for size in (n, n, u)]
    rows = jax.ShapeDtypeStruct((2, 256), jnp.int32)
    choice = Choice(cudnn.CUDNN, attend_plain, documents)

    def loss(q, k, v, segments):
        return attend(q, k, v, segments, n**-0.5, choice=choice).astype(jnp.float32).sum()

    with cudnn.of_hopper():
        traced = jax.jit(jax.grad(loss, (0, 1, 2))).trace(*shapes, rows)
        return traced.lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize(("documents", "operands", "mask"), [
    (1, (3, 6), "CAUSAL"), (16, (7, 10), "PADDING_CAUSAL"),
], ids=["causal rows", "packed"])
def test_for_cuda_both_passes_lower_to_cudnn_s_calls(documents, operands, mask):
    text = lowered(documents)
    calls = re.findall(r"custom_call @(__cudnn\S+?)\((.*?)\) \{(.*)", text)
    assert [name for name, *_ in calls] == ["__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"]
    for (_, given, about), wanted in zip(calls, operands):
        assert given.count("%") == wanted  # q, k, v (statistics, d_out, out), lengths and starts
        assert f'mask_type\\22: \\22{mask}\\22' in about
        assert f'max_seg_per_batch\\22: {documents}' in about
        assert "tensor<2x256x4x192xbf16>, tensor<2x256x4x192xbf16>, tensor<2x256x4x192xbf16>" \
            in about  # values padded
    assert text.count("stablehlo.case") >= 2  # the plain form stands beside


def test_wide_heads_go_to_the_plain_form():
    assert "__cudnn" not in lowered(16, (264, 128))
