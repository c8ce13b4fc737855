"""The kernel for TPUs makes its twin's product, interpreted: to the bit where sums are exact."""

import functools

import numpy as np
import pytest

from dsjax.kernels import tiles, tpu
from dsjax.numerics import codes
from tests.kernels.operands import DGRAD, FPROP, WGRAD, operands_of


@pytest.mark.parametrize(("product", "sizes", "lead"), [
    (FPROP, (130, 300, 129), (2,)),  # three tiles of K one by one, blocks of 256
    (DGRAD, (5, 7, 1024), ()),  # eight, four at a time
    (WGRAD, (256, 640, 384), ()),  # two at once, five and three blocks of the output
], ids=["fprop", "dgrad", "wgrad"])
def test_the_interpreted_kernel_makes_the_twin_s_product(product, sizes, lead):
    a, b = operands_of(product, *sizes, lead)
    interpreted = functools.partial(tpu.product, interpret=True)
    np.testing.assert_array_equal(
        tiles.multiplied(interpreted, a, b, *product), codes.multiply(a, b, *product))
