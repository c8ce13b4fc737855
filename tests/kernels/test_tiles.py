"""A kernel's operands make its twin's product: cut, filled up, turned and scaled as there."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from dsjax.kernels import hopper, tiles, tpu
from dsjax.numerics import codes
from dsjax.numerics.formats import E5M2
from dsjax.numerics.vary import varies
from tests.kernels.operands import DGRAD, FPROP, WGRAD, operands_of, plain, quantized


def both(a, b, product):
    """The product by tiles, and the twin's, each as one program."""
    return (jax.jit(lambda a, b: tiles.multiplied(plain, a, b, *product))(a, b),
            jax.jit(lambda a, b: codes.multiply(a, b, *product))(a, b))


@pytest.mark.parametrize("product", [FPROP, DGRAD, WGRAD], ids=["fprop", "dgrad", "wgrad"])
@pytest.mark.parametrize(("sizes", "lead"), [
    pytest.param((128, 256, 384), (), marks=pytest.mark.exhaustive),
    pytest.param((5, 300, 70), (), marks=pytest.mark.exhaustive),
    ((130, 129, 257), (3,)), ((1, 1, 1), (2, 2)),
], ids=str)
def test_what_is_read_makes_the_twin_s_product(product, sizes, lead):
    a, b = operands_of(product, *sizes, lead)
    found, expected = both(a, b, product)
    assert np.any(expected)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("hidden", [
    pytest.param(128, marks=pytest.mark.exhaustive), 70,
    pytest.param(200, marks=pytest.mark.exhaustive)])
def test_parts_that_end_inside_a_tile_are_cut_there(hidden):
    """Gate and up side by side, tiled apart: Dgrad sums over both."""
    a, b = quantized(1, (1, 128), 9, 2 * hidden), quantized(2, (128, 1, 128), 150, 2, hidden)
    np.testing.assert_array_equal(*both(a, b, DGRAD))


def test_operands_of_two_formats_are_left_to_the_twin():
    def never(*_):
        raise AssertionError("a kernel was given two formats")

    a, b = quantized(1, (1, 128), 4, 256, dtype=E5M2.dtype), quantized(2, (128, 128), 256, 8)
    actual, expected = jax.jit(lambda a, b: (
        tiles.machine(never).multiply(a, b, *FPROP), codes.multiply(a, b, *FPROP)))(a, b)
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("kernel", [hopper, tpu], ids=lambda k: k.__name__)
def test_a_device_s_product_varies_as_what_it_is_made_of(kernel):
    """Tokens differ from device to device, the weight does not; traced, not run."""
    def here(a, b):
        y = tiles.multiplied(kernel.product, a, b, *FPROP)
        assert varies(y) == {"x"}
        return y

    mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    specs = (PartitionSpec("x"), PartitionSpec())
    spread = jax.shard_map(here, mesh=mesh, in_specs=specs, out_specs=specs[0], check_vma=True)
    assert jax.eval_shape(spread, *operands_of(FPROP, 256, 256, 128)).shape == (256, 128)
