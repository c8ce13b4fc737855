"""Products of the codes themselves are the emulated products, but for the order of float32 sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsjax.numerics import codes, gemm, scaled
from dsjax.numerics.precision import Weight
from dsjax.numerics.scaled import Scaled
from dsjax.ops.expert_mlp import batched as products_of
from dsjax.ops.experts import experts_batched
from dsjax.ops.linear import linear
from tests.agreement import compiled


def draw(seed, *shape):
    rng = np.random.default_rng(seed)
    size = np.exp(2 * rng.standard_normal((shape[-2], 1)) + rng.standard_normal((1, shape[-1])))
    return jnp.asarray(size * rng.standard_normal(shape), jnp.float32)


def near(actual, expected, terms=400):
    """Sums of some hundred terms in two orders; entries cancel, so the largest is the measure."""
    np.testing.assert_allclose(actual, expected, rtol=0,
                               atol=terms * 2.0**-24 * float(jnp.abs(expected).max()))


@pytest.mark.parametrize(("o_proj", "recipe"), [
    (False, gemm.V3_1), (True, gemm.V3), pytest.param(False, gemm.V3, marks=pytest.mark.exhaustive),
    pytest.param(True, gemm.V3_1, marks=pytest.mark.exhaustive)], ids=str)
def test_a_linear_and_its_gradients_are_the_emulated_ones(recipe, o_proj):
    x, w, dy = draw(0, 137, 300), draw(1, 300, 141), draw(2, 137, 141)
    results = []
    for machine in (codes.MATMUL, None):
        precision = gemm.precision(recipe, machine)
        precision = precision.o_proj if o_proj else precision
        y, pull = jax.vjp(lambda x, w, p=precision: linear(x, w, precision=p), x, w)
        results.append((y, *pull(dy)))
    for actual, expected in zip(*results):
        near(actual, expected)


@pytest.mark.parametrize("hidden", [
    pytest.param(128, marks=pytest.mark.exhaustive), 70])  # with a tile, or inside one
def test_experts_with_gate_and_up_apart_are_the_emulated_ones(hidden):
    x, weights = draw(3, 24, 136), jnp.full((24, 1), 0.5)
    experts = (jnp.arange(24, dtype=jnp.int32) % 2)[:, None]
    gate_up, down = draw(4, 2, 136, 2 * hidden).reshape(2, 136, 2, hidden), draw(5, 2, hidden, 136)
    results = []
    for machine in (codes.MATMUL, None):
        precision = gemm.precision(gemm.V3_1, machine)

        def f(x, gate_up, down, precision=precision):
            quantized = (Weight(gate_up, precision.quantize_weight(gate_up.reshape(2, 136, -1), 2)),
                         Weight(down, precision.quantize_weight(down)))
            return experts_batched(x, experts, weights, *quantized, mlp=products_of(precision))

        def pulled(dy, f=f):
            y, pull = jax.vjp(f, x, gate_up, down)
            return (y, *pull(dy))

        results.append(compiled(pulled)(draw(6, 24, 136)))
    for actual, expected in zip(*results):
        # Hidden activations differ in the last place of float32, and so in a code here and there.
        assert jnp.linalg.norm(actual - expected) < 2e-3 * jnp.linalg.norm(expected)


def test_operands_are_quantized_to_codes_and_multiplied_as_codes():
    precision = gemm.precision(gemm.V3_1, codes.MATMUL)
    x, w = draw(7, 8, 256), precision.quantize_weight(draw(8, 256, 128))
    assert isinstance(w, Scaled)
    text = str(jax.make_jaxpr(lambda x: precision.fprop(precision.quantize_for_fprop(x), w))(x))
    dots = [line for line in text.splitlines() if "dot_general" in line]
    assert len(dots) == 2  # of 128 each
    quantized = scaled.quantize(x, (1, 128), True)
    jaxpr = jax.make_jaxpr(lambda q: codes.multiply(q, w, 1, 2))(quantized)
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            assert [v.aval.dtype for v in eqn.invars] == 2 * [jnp.float8_e4m3fn]
