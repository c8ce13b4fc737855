"""The kernel for Hopper makes its twin's product, in Pallas' simulation of a GPU.

To the bit, as sums of these operands are exact in any order.
"""

import functools

import numpy as np
from jax.experimental.pallas import mosaic_gpu

from dsjax.kernels import hopper, tiles
from dsjax.numerics import codes
from tests.kernels.operands import FPROP, operands_of


def simulated_gpu():
    """Pallas' parameters of one; jax 0.10 does not export them."""
    if hasattr(mosaic_gpu, "InterpretGPUParams"):
        return mosaic_gpu.InterpretGPUParams()
    from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

    return InterpretGPUParams()


def test_the_simulated_kernel_makes_the_twin_s_product(monkeypatch):
    """Six output tiles of two experts on four thread blocks, three tiles of K, short ends."""
    monkeypatch.setattr(hopper, "MULTIPROCESSORS", 4)
    a, b = operands_of(FPROP, 100, 300, 260, (2,))
    product = functools.partial(hopper.product, interpret=simulated_gpu())
    np.testing.assert_array_equal(
        tiles.multiplied(product, a, b, *FPROP), codes.multiply(a, b, *FPROP))
