"""A matrix with an adapter multiplies as W + alpha / rank A B, and only the adapter has a gradient.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsjax.config.sft import LoRAConfig
from dsjax.layers import adapted
from dsjax.layers.adapted import LowRank, Replaced
from dsjax.layers.backend import single
from dsjax.numerics import scaled
from tests import agreement


def test_the_product_is_that_of_the_formula_by_hand():
    """peft: W x + alpha / r B A x, with its matrices transposed. alpha 6 and rank 2 count thrice.

    x = (1, 2): W gives (1, 4, -1); A gives (1 - 2, 2) = (-1, 2); B gives (-1 + 2, -2, 0); times 3.
    """
    lora = LoRAConfig(rank=2, alpha=6.0)
    w = LowRank(jnp.asarray([[1.0, 0.0, 1.0], [0.0, 2.0, -1.0]]),
                jnp.asarray([[1.0, 0.0], [-1.0, 1.0]]),
                jnp.asarray([[1.0, 2.0, 0.0], [1.0, 0.0, 0.0]]), lora.scale)
    y = single().linear(jnp.asarray([[1.0, 2.0]]), w)
    np.testing.assert_array_equal(y, [[1.0 + 3 * 1.0, 4.0 - 3 * 2.0, -1.0]])


@pytest.mark.parametrize("contract", [1, 2])
def test_it_is_the_product_with_the_merged_matrix_and_so_are_gradients(contract):
    """Of x [T, K] or [T, H, U]; in float64, where both differ by rounding alone."""
    rng = np.random.default_rng(contract)
    shape = (3, 5, 7) if contract == 1 else (2, 3, 7)
    k, n = shape[:contract], shape[contract:]
    with jax.enable_x64(True):
        backend = agreement.double()
        base, x = (jnp.asarray(rng.standard_normal(s)) for s in (shape, (4, *k)))
        a, b = (jnp.asarray(rng.standard_normal(s)) for s in ((*k, 2), (2, *n)))

        def apart(x, a, b):
            return backend.linear(x, LowRank(base, a, b, 0.7), contract)

        def merged(x, a, b):
            return backend.linear(x, base + 0.7 * jnp.tensordot(a, b, 1), contract)

        dy = jnp.asarray(rng.standard_normal((4, *n)))
        for one, other in zip(jax.tree.leaves(jax.vjp(apart, x, a, b)[1](dy)),
                              jax.tree.leaves(jax.vjp(merged, x, a, b)[1](dy)), strict=True):
            agreement.close(one, other)
        agreement.close(apart(x, a, b), merged(x, a, b))


def test_a_frozen_matrix_of_narrow_numbers_or_codes_is_multiplied_and_has_no_gradient():
    rng = np.random.default_rng(0)
    w = jnp.asarray(rng.standard_normal((130, 140)), jnp.float32)
    a, b = jnp.ones((130, 2)), jnp.full((2, 140), 0.5)
    x = jnp.asarray(rng.standard_normal((3, 130)), jnp.float32)
    for base in (w.astype(jnp.bfloat16), scaled.quantize(w, (128, 128))):
        def summed(a, b, base=base):
            return single().linear(x, LowRank(base, a, b, 1.0)).sum()

        value = scaled.dequantize(base) if base is not None and hasattr(base, "codes") else \
            base.astype(jnp.float32)
        da, db = jax.grad(summed, (0, 1))(a, b)
        np.testing.assert_allclose(
            single().linear(x, LowRank(base, a, b, 1.0)), x @ value + x @ a @ b, rtol=2e-5,
            atol=1e-4)  # 130 float32 products of size 1, in another order
        np.testing.assert_allclose(da, jnp.outer(x.sum(0), b.sum(1)), rtol=2e-5, atol=1e-4)
        np.testing.assert_allclose(db, jnp.broadcast_to((x @ a).sum(0)[:, None], b.shape),
                                   rtol=2e-5, atol=1e-4)


def test_experts_that_learn_stand_in_their_places_and_alone_have_gradients():
    base = jnp.arange(2 * 3 * 4, dtype=jnp.float32).reshape(4, 2, 3)
    learns = -jnp.ones((2, 2, 3))
    place = jnp.asarray([-1, 1, -1, 0], jnp.int32)
    made = adapted.whole(Replaced(base, learns * jnp.asarray([1.0, 2.0])[:, None, None], place),
                         jnp.float32)
    np.testing.assert_array_equal(made[jnp.asarray([0, 2])], base[jnp.asarray([0, 2])])
    np.testing.assert_array_equal(made[3], -np.ones((2, 3)))
    np.testing.assert_array_equal(made[1], -2 * np.ones((2, 3)))

    def weighed(w):
        found = adapted.whole(Replaced(base, w, place), jnp.float32)
        return (found * jnp.arange(1.0, 5.0)[:, None, None]).sum()

    d = jax.grad(weighed)(learns)
    np.testing.assert_array_equal(d[0], np.full((2, 3), 4.0))
    np.testing.assert_array_equal(d[1], np.full((2, 3), 2.0))


def test_adapters_of_experts_are_added_expert_by_expert():
    rng = np.random.default_rng(1)
    base, a, b = (jnp.asarray(rng.standard_normal(s), jnp.float32)
                  for s in ((3, 5, 2, 4), (3, 5, 2), (3, 2, 2, 4)))
    made = adapted.whole(LowRank(base, a, b, 0.5), jnp.float32)
    for e in range(3):
        wanted = base[e] + 0.5 * np.tensordot(a[e], b[e], 1)
        np.testing.assert_allclose(made[e], wanted, rtol=1e-5, atol=1e-6)
