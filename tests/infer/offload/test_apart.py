"""Outputs kept apart are those of the clear form, in pieces as at once, wherever experts lie."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsjax.infer.offload.apart import experts_apart
from dsjax.numerics import gemm
from dsjax.numerics.precision import BF16, FP32, Weight
from dsjax.numerics.scaled import quantize
from dsjax.ops.expert_mlp import batched
from dsjax.ops.expert_stack import stack
from dsjax.ops.experts import experts_plain

EXPERTS, PER_TOKEN, D, F = 7, 3, 11, 5
TOKENS = {"written out": 5, "small tiles": 17, "large tiles": 131}
MLP = batched(FP32)


def drawn(tokens, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((tokens, D)).astype(np.float32)
    experts = np.argsort(rng.random((tokens, EXPERTS)))[:, :PER_TOKEN].astype(np.int32)
    weights = rng.random((tokens, PER_TOKEN)).astype(np.float32)
    gate_up = rng.standard_normal((EXPERTS, D, 2, F)).astype(np.float32)
    down = rng.standard_normal((EXPERTS, F, D)).astype(np.float32)
    return x, experts, weights, gate_up, down




@functools.partial(jax.jit, static_argnames="mlp")
def apart(x, experts, weights, gate_up, down, mlp=MLP, into=None):
    return experts_apart(x, experts, weights, stack(gate_up, 2), stack(down, 1), mlp=mlp, into=into)



@pytest.mark.parametrize("tokens", TOKENS.values(), ids=list(TOKENS))
def test_their_sum_is_the_clear_form(tokens):
    args = drawn(tokens)
    # sums of at most eleven products of numbers near one, twice: 2^-24 times some tens
    np.testing.assert_allclose(np.asarray(apart(*args)).sum(axis=1),
                               jax.jit(experts_plain)(*args), atol=2e-5)


@pytest.mark.parametrize("tokens", TOKENS.values(), ids=list(TOKENS))
def test_in_waves_over_other_places_they_have_the_same_bits(tokens):
    x, experts, weights, gate_up, down = drawn(tokens)
    whole = np.asarray(apart(x, experts, weights, gate_up, down))
    rows = np.full_like(whole, 0)
    for wave in ([6, 1], [0, 5], [4], [2, 3]):
        stack = [3, *wave, 3]  # of another length, with a stranger at both ends
        places = np.full(EXPERTS, len(stack), np.int32)
        places[wave] = 1 + np.arange(len(wave))
        rows = np.asarray(apart(x, places[experts], weights, gate_up[stack], down[stack],
                                into=rows))
    np.testing.assert_array_equal(rows, whole)


@pytest.mark.parametrize("tokens", TOKENS.values(), ids=list(TOKENS))
def test_an_expert_that_is_not_there_leaves_what_was(tokens):
    x, experts, weights, gate_up, down = drawn(tokens)
    gone = np.full_like(experts, EXPERTS)
    gone[0] = -1
    into = np.random.default_rng(3).standard_normal((tokens, PER_TOKEN, D)).astype(np.float32)
    np.testing.assert_array_equal(apart(x, gone, weights, gate_up, down, into=into), into)


@pytest.mark.parametrize("precision", [BF16, gemm.FP8], ids=lambda p: p.name)
@pytest.mark.parametrize("tokens", [5, 17])
def test_quantized_once_or_here_is_the_same(precision, tokens):
    x, experts, weights, gate_up, down = drawn(tokens)
    quantized = jax.jit(precision.quantize_weight, static_argnums=1)
    held = [Weight(jnp.zeros(1), quantized(w.reshape(*w.shape[:2], -1), parts))
            for w, parts in ((gate_up, 2), (down, 1))]
    run = functools.partial(apart, mlp=batched(precision))
    np.testing.assert_array_equal(run(x, experts, weights, *held),
                                  run(x, experts, weights, gate_up, down))


@pytest.mark.parametrize("tokens", [5, 17])
def test_experts_that_rest_in_eight_bits_are_what_their_codes_stand_for(tokens):
    x, experts, weights, gate_up, down = drawn(tokens)
    codes = [jax.jit(quantize, static_argnums=1)(w, tile)
             for w, tile in ((gate_up, (128, 1, 128)), (down, (128, 128)))]
    run = functools.partial(apart, mlp=batched(gemm.FP8))
    held = [Weight(jnp.zeros(1), jax.jit(gemm.FP8.from_codes)(q)) for q in codes]
    made = run(x, experts, weights, *codes)
    np.testing.assert_array_equal(made, run(x, experts, weights, *held))
    assert np.abs(np.asarray(made)).max() > 1
