"""Blocked and scanned attention are the plain form, which is the reference's, with their gradients;
a long row never makes an array of T x T.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from dsjax.ops import attention
from dsjax.ops.attention import attend, attend_plain
from tests.agreement import close, compiled, pulled, shapes_within
from tests.reference.attention import attend_one_head

B, H, N, U = 2, 3, 6, 5


def inputs(length, seed=0):
    rng = np.random.default_rng(seed)
    q, k = rng.standard_normal((2, B, H, length, N))
    v, d_out = rng.standard_normal((2, B, H, length, U))
    segments = np.ones((B, length), np.int32)
    segments[0, length // 3 :] = 2
    segments[1, -(length // 4) :] = 0  # padding at the end
    segments[0, : length // 5] = 0  # and at the front
    return (q, k, v), d_out, segments


def by_form(form, length, **choices):
    """Output and gradients of one form in float64."""
    operands, d_out, segments = inputs(length)
    with jax.enable_x64(True):
        return pulled(lambda q, k, v: form(q, k, v, segments, 0.4, **choices), d_out, *operands)


@functools.cache
def plain(length):
    return by_form(lambda q, k, v, s, scale: attend_plain(q, k, v, jnp.asarray(s), scale), length)


def test_plain_form_agrees_with_the_reference_where_a_token_is_real():
    (q, k, v), _, segments = inputs(11)
    y = plain(11)[0]
    for b in range(B):
        real = segments[b] != 0
        for h in range(H):
            expected = attend_one_head(q[b, h], k[b, h], v[b, h], segments[b], 0.4)
            close(y[b, h][real], expected[real])
    np.testing.assert_array_equal(y[0, :, 0], v[0, :, 0])  # padding looks at itself


@pytest.mark.parametrize(
    ("length", "block"),
    [(1, 4), (11, 4), (12, 4), (11, 16), (36, 4), (37, 4)],
    ids=["one", "odd", "whole", "single block", "scanned", "scanned odd"],
)
def test_blocks_give_the_plain_output_and_gradients(length, block):
    is_scanned = length > attention.UNROLLED_BLOCKS * block
    assert is_scanned == (length in (36, 37))
    y, gradients = by_form(attend, length, block=block)
    plain_y, plain_gradients = plain(length)
    close(y, plain_y, 1e-13)
    for actual, expected in zip(gradients, plain_gradients):
        close(actual, expected, 1e-12)


@pytest.mark.parametrize("length", [11, 37])
def test_no_query_reads_the_future_another_document_or_padding(length):
    (q, k, v), _, segments = inputs(length)

    def f(v):
        return attend(q, k, v, segments, 0.4, 4)[:, 0, :, 0]  # [B, T]

    with jax.enable_x64(True):
        reads = np.asarray(compiled(jax.jacrev(f))(v))[..., 0, :, 0]  # [B, T, B, T]
    for b, t, other, s in np.ndindex(*reads.shape):
        is_visible = (b == other and s <= t and segments[b, s] == segments[b, t] != 0)
        assert (reads[b, t, other, s] > 0) == (is_visible or (b, t) == (other, s))


@pytest.mark.parametrize("length", [11, 37], ids=["written out", "scanned"])
def test_devices_that_each_have_their_rows_attend_as_one(length):
    rows = PartitionSpec("data")
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,),
                         devices=jax.devices()[:2])

    def form(q, k, v, segments, scale):
        def here(*args):
            return attend(*args, scale, 4)

        return jax.shard_map(here, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=True)(
            q, k, v, jnp.asarray(segments))

    (y, gradients), (plain_y, plain_gradients) = by_form(form, length), plain(length)
    close(y, plain_y, 1e-13)
    for actual, expected in zip(gradients, plain_gradients, strict=True):
        close(actual, expected, 1e-12)


@pytest.mark.parametrize("length", [11, 37])
def test_bfloat16_operands_stay_within_their_rounding(length):
    (q, k, v), d_out, segments = inputs(length)
    low = [jnp.asarray(a, jnp.float32) for a in (q, k, v)]
    y, gradients = pulled(lambda q, k, v: attend(q, k, v, segments, 0.4, 4, True),
                          jnp.asarray(d_out, jnp.float32), *low)
    plain_y, plain_gradients = plain(length)
    # A score's error is at most 2 * 2^-9 * scale * sum |q k| < 0.4 * 6 * 4 * 2^-8 = 0.04, which
    # moves a weight by that factor twice; values add 2^-8. Gradients see it twice more.
    close(y, plain_y, 0.08)
    for actual, expected in zip(gradients, plain_gradients):
        close(actual, expected, 0.16)
    assert np.abs(y - plain_y).max() > 1e-4  # float32 operands would not


@pytest.mark.parametrize("length", [96, 97])
def test_a_long_row_makes_no_array_of_time_by_time(length):
    shape = jax.ShapeDtypeStruct((1, 1, length, 2), jnp.float32)
    segments = jax.ShapeDtypeStruct((1, length), jnp.int32)

    def f(q, k, v, segments):
        return attend(q, k, v, segments, 1.0, 8).sum()

    traced = jax.make_jaxpr(jax.value_and_grad(f, (0, 1, 2)))(shape, shape, shape, segments)
    found = {shape for shape, _ in shapes_within(traced.jaxpr)}
    assert (1, 1, 8, 8) in found  # the walk sees inside the scans
    assert not [s for s in found if sum(n >= length for n in s) > 1]
    quadratic = jax.make_jaxpr(lambda q: attend_plain(q, q, q, jnp.ones((1, length)), 1.0))(shape)
    assert (1, 1, length, length) in {s for s, _ in shapes_within(quadratic.jaxpr)}
