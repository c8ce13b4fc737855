"""Rows that device p puts in part q arrive as part p of device q, as their precision sends them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from dsjax.config.parallel import ParallelConfig
from dsjax.numerics import gemm, scaled
from dsjax.numerics.wire import BFLOAT16, EXACT, FP8
from dsjax.parallel import exchange
from dsjax.parallel.exchange import MeshAxis
from dsjax.parallel.mesh import AXES, make_mesh

DEVICES, C, D = 8, 3, 256


def exchanged(x, out, back, is_ragged=True):
    """x [8, 8, C, D] with all rows filled -> [8, 8, C, D] as received."""
    axis = MeshAxis("expert", AXES, is_ragged)

    def here(x):
        full = jax.lax.pcast(jnp.full(DEVICES, C, jnp.int32), AXES, to="varying")
        rows = exchange.exchange_rows(axis, out, back, x.reshape(DEVICES * C, D), full, full)
        return rows.reshape(x.shape)

    mesh = make_mesh(ParallelConfig(expert=DEVICES))
    return jax.shard_map(here, mesh=mesh, in_specs=P(AXES), out_specs=P(AXES), check_vma=True)(x)


@pytest.fixture
def x(key):
    return jax.random.normal(key, (DEVICES, DEVICES, C, D))


@pytest.mark.parametrize(("form", "step"), [(EXACT, 0.0), (BFLOAT16, 2.0**-8), (FP8, 2.0**-4)])
def test_parts_change_places_and_keep_their_value_within_the_form(x, form, step):
    y = jax.jit(lambda x: exchanged(x, form, form))(x)
    wanted = x.swapaxes(0, 1)
    assert float(jnp.abs(y - wanted).max()) <= step * float(jnp.abs(x).max())
    if step:
        assert not np.array_equal(y, wanted)


def test_a_gradient_travels_back_in_the_other_form(x):
    d = jax.random.normal(jax.random.key(1), x.shape)
    dx = jax.jit(jax.grad(lambda x: (exchanged(x, BFLOAT16, EXACT) * d).sum()))(x)
    np.testing.assert_array_equal(dx, d.swapaxes(0, 1))


def test_fp8_sends_a_byte_a_number_and_one_a_tile():
    parcel = jax.eval_shape(FP8.pack, jax.ShapeDtypeStruct((5, 300), jnp.float32))
    sizes = [a.size * a.dtype.itemsize for a in jax.tree.leaves(parcel)]
    assert sum(sizes) == 5 * FP8.row_bytes(300, 4) == 5 * 303


@pytest.mark.parametrize(("platform", "is_ragged", "is_found"), [
    ("tpu", True, True), ("cuda", True, True), ("cpu", True, False), ("tpu", False, False)])
def test_rows_travel_ragged_where_the_machine_can(x, platform, is_ragged, is_found):
    f = jax.jit(functools.partial(exchanged, out=EXACT, back=EXACT, is_ragged=is_ragged))
    text = f.trace(x).lower(lowering_platforms=(platform,)).as_text()
    assert ("ragged_all_to_all" in text) == is_found
    assert ("stablehlo.all_to_all" in text) != is_found


def test_what_arrives_in_fp8_is_the_operand_that_one_device_would_quantize(key):
    """Tiles and powers of two are those of the products, so rounding twice is rounding once.

    Codes are equal too, except where the largest of a tile rounds down to half the range: the
    scale is then half as large and every code twice, which E4M3 holds exactly.
    """
    sizes = jnp.exp2(jax.random.randint(jax.random.key(2), (64, 2), -20, 20).astype(jnp.float32))
    x = jax.random.normal(key, (64, D)) * jnp.repeat(sizes, 128, axis=1)
    x = x.at[0].set(jnp.linspace(-100.0, 225.0, D))
    arrived = FP8.unpack(FP8.pack(x), x.dtype)
    once, twice = gemm.FP8.quantize_input(x), gemm.FP8.quantize_input(arrived)
    np.testing.assert_array_equal(scaled.dequantize(twice), scaled.dequantize(once))
    ratio = np.asarray(scaled.scale_values(twice.scales) / scaled.scale_values(once.scales))
    is_same = np.repeat(ratio == 1.0, 128, axis=1)
    np.testing.assert_array_equal(np.asarray(once.codes)[is_same], np.asarray(twice.codes)[is_same])
    assert set(np.unique(ratio)) == {0.5, 1.0}
    assert ratio[0, 1] == 0.5
