"""Written-out experts compute what every expert on every token would, where it was chosen."""

import jax
import numpy as np
import pytest

from dsjax.numerics.precision import BF16, Weight
from dsjax.ops.experts import experts_plain
from dsjax.ops.experts_few import experts_few, is_few
from tests.agreement import FP64, close

T, D, E, F = 3, 5, 7, 4


def arrays(per_token):
    rng = np.random.default_rng(per_token)
    experts = np.stack([rng.permutation(E)[:per_token] for _ in range(T)]).astype(np.int32)
    shapes = [(T, D), (T, per_token), (E, D, 2, F), (E, F, D)]
    x, weights, w_gate_up, w_down = (rng.standard_normal(shape) for shape in shapes)
    return x, experts, weights, w_gate_up, w_down


@pytest.mark.parametrize("per_token", [1, 2])
def test_written_out_experts_are_the_plain_ones(per_token):
    with jax.enable_x64(True):
        few = jax.jit(lambda *a: experts_few(*a, precision=FP64))(*arrays(per_token))
        close(few, experts_plain(*arrays(per_token)), 1e-13)


def test_quantized_weights_give_what_plain_ones_give():
    x, experts, weights, w_gate_up, w_down = (
        a.astype(np.float32) if a.dtype.kind == "f" else a for a in arrays(2)
    )
    quantized = [
        Weight(w, BF16.quantize_weight(w.reshape(E, w.shape[1], -1))) for w in (w_gate_up, w_down)
    ]
    few = jax.jit(lambda *a: experts_few(*a, precision=BF16))
    np.testing.assert_array_equal(
        few(x, experts, weights, *quantized), few(x, experts, weights, w_gate_up, w_down)
    )
    # Operands of two products rounded to 8 bits: 2^-8 each, twice, of sums of some ten terms.
    close(few(x, experts, weights, *quantized),
          experts_plain(x, experts, weights, w_gate_up, w_down), 10 * 2.0**-8)


def test_few_means_fewer_assignments_than_experts_and_a_small_program():
    assert is_few(4, 16)
    assert not is_few(16, 16)
    assert is_few(16, 256)
    assert not is_few(64, 256)
