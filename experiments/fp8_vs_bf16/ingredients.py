"""FP8 with one ingredient taken out, as private variants of the recipe (V3 report sec. 3.3)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from dsjax.layers.backend import Backend, single
from dsjax.numerics import accumulate, gemm
from dsjax.numerics.formats import E5M2
from dsjax.numerics.gemm import MatmulImpl, Recipe
from dsjax.numerics.precision import Operand, Precision
from dsjax.numerics.scaled import WHOLE

TENSOR = (WHOLE, WHOLE)

PER_TENSOR = gemm.precision(Recipe("fp8_per_tensor", input_tile=TENSOR, weight_tile=TENSOR,
                                  grad_tile=TENSOR, turned_tile=TENSOR))
E5M2_GRADIENTS = gemm.precision(Recipe("fp8_e5m2_gradients", grad_format=E5M2))
BLOCK_GRADIENTS = gemm.precision(Recipe("fp8_block_gradients", grad_tile=(128, 128)))


def registers(promote: int | None) -> Precision:
    """The products summed in the tensor core's 14-bit registers, promoted every `promote` of K."""

    def multiply(a: Operand, b: Operand, sum_a: int, sum_b: int) -> Array:
        a, b = gemm.operand_value(a), gemm.operand_value(b)
        a = a if sum_a == 1 else a.swapaxes(-1, -2)
        b = b if sum_b == 2 else b.swapaxes(-1, -2)

        def one(a: Array, b: Array) -> Array:
            return accumulate.product_fast(a, b, promote)

        return (jax.vmap(one) if a.ndim == 3 else one)(a, b)

    name = f"fp8_registers_{promote or 'never'}"
    return gemm.precision(Recipe(name), MatmulImpl(gemm.EMULATED.quantize, multiply))


def backend(precision: Precision) -> Backend:
    """The single device's backend with these products, activations in float32."""
    return single(precision, jnp.float32)
