"""The kernel for Hopper is its twin to the bit, in Pallas' simulation of a GPU."""

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
    """Eight output tiles of two experts on three thread blocks, three tiles of K, short ends."""
    monkeypatch.setattr(hopper, "MULTIPROCESSORS", 3)
    a, b = operands_of(FPROP, 130, 300, 129, (2,))
    product = functools.partial(hopper.product, interpret=simulated_gpu())
    np.testing.assert_array_equal(
        tiles.multiplied(product, a, b, *FPROP), codes.multiply(a, b, *FPROP))
