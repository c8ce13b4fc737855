"""A narrow precision is narrow everywhere: weights once a step, attention, the head, the wire.

What it defends against: a part of the step that stays in float32 unseen, as nothing but its speed
and the last bits of the loss would tell.
"""

import jax.numpy as jnp
import pytest

from dsjax.layers.backend import single
from dsjax.numerics import gemm, wire
from dsjax.numerics.precision import BF16, FP32


@pytest.mark.parametrize(("precision", "is_narrow", "travels"), [
    (FP32, False, wire.EXACT_WIRE), (BF16, True, wire.BF16_WIRE), (gemm.FP8, True, wire.FP8_WIRE),
    (gemm.precision(gemm.V3), True, wire.FP8_WIRE)], ids=["fp32", "bf16", "fp8", "fp8_v3"])
def test_what_a_precision_says_of_the_rest_of_a_step(precision, is_narrow, travels):
    dtype = jnp.bfloat16 if is_narrow else jnp.float32
    assert precision.casts_weights == is_narrow
    assert precision.wire == travels
    assert single(precision).loss_dtype == dtype
    assert single(precision).attend.keywords == {"is_low": is_narrow}
    high = precision.high or precision
    assert high.quantize_weight(jnp.ones((4, 4))).dtype == dtype
