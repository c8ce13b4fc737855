"""FP8 weights that are kept as released run as what they stand for, in every precision."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsjax.infer.generate import Options, generate
from dsjax.infer.sample import Sampling
from dsjax.layers.backend import single
from dsjax.model import transformer
from dsjax.numerics import codes, gemm
from dsjax.numerics.precision import BF16, FP32, Weight
from dsjax.numerics.scaled import Scaled, quantize
from dsjax.ops.linear import linear
from dsjax.released import hf
from tests.agreement import compiled
from tests.released.test_hf import CFG, LITE, draw

QUIET = {"say": lambda sentence: None}
TOKENS = jnp.asarray(np.random.default_rng(1).integers(0, CFG.vocab, (2, 9)), jnp.int32)
SMALL = {"v3": dataclasses.replace(CFG, layers=2, mtp_depth=1), "v2": LITE}



def exact(precision):
    """FP8 products of weights that are not quantized."""
    return dataclasses.replace(precision, quantize_weight=lambda w, parts=1: w)


EXACT = dataclasses.replace(exact(gemm.FP8), o_proj=exact(gemm.FP8.o_proj))


@pytest.fixture(autouse=True)
def quick_compilation():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module", params=["v3", pytest.param("v2", marks=pytest.mark.exhaustive)])
def released(request, tmp_path_factory):
    """The config of an FP8 checkpoint; its parameters kept, and dequantized to float32."""
    cfg, tmp_path = SMALL[request.param], tmp_path_factory.mktemp("released")
    p = jax.tree.map(lambda a: 0.1 * a, draw(cfg))
    hf.save(tmp_path / "a", cfg, p, fp8="ue8m0" if request.param == "v2" else True)
    kept, wide = (hf.load(tmp_path / "a", dtype, **QUIET)[1] for dtype in ("fp8", "float32"))
    assert isinstance(kept.moe.ffn.experts.w_gate_up, Scaled)
    return cfg, kept, wide


def logits(p, cfg, backend):
    return np.asarray(compiled(lambda p, t: transformer.logits(p, t, cfg, backend=backend))(
        p, TOKENS))


@pytest.fixture(scope="module")
def in_codes(released):
    """Logits of the kept matrices by products in FP8."""
    cfg, kept, _ = released
    return logits(kept, cfg, single(gemm.FP8))


@pytest.mark.exhaustive  # decoding below reads the same matrices
def test_kept_matrices_give_the_logits_of_dequantized_ones(released):
    cfg, kept, wide = released
    np.testing.assert_array_equal(logits(kept, cfg, single()), logits(wide, cfg, single()))
    np.testing.assert_array_equal(transformer.logits(kept, TOKENS, cfg).shape, (2, 9, cfg.vocab))


@pytest.mark.exhaustive
def test_bfloat16_products_read_them_rounded(released):
    cfg, kept, wide = released
    low = single(BF16, jnp.bfloat16)
    np.testing.assert_array_equal(logits(kept, cfg, low), logits(wide, cfg, low))


def test_fp8_products_read_the_codes_and_not_new_ones(released, in_codes):
    """Against the same products whose weights are the exact numbers."""
    (cfg, _, wide), ours = released, in_codes
    np.testing.assert_array_equal(ours, logits(wide, cfg, single(EXACT)))
    far = np.abs(ours - logits(wide, cfg, single())).max()
    assert 0 < far < 0.2 * np.abs(ours).max()


def test_a_machine_with_8_bit_products_gets_the_codes_as_they_are(released, in_codes):
    """Equal to the emulated products but for the order of sums, whose differences flip codes."""
    cfg, kept, _ = released
    machine = gemm.precision(gemm.V3_1, codes.MATMUL)
    q = kept.moe.attn.w_o
    assert machine.from_codes(q) is q
    # Half an FP8 code, 2^-4 of a number, is the most that one flipped rounding moves it by.
    error = np.abs(logits(kept, cfg, single(machine)) - in_codes).max()
    assert error <= 2**-4 * np.abs(in_codes).max()


def test_they_decode_what_dequantized_ones_say(released):
    """Prefill, the absorbed form, experts one by one, and drafts."""
    cfg, kept, wide = released
    sampling = Sampling(temperature=0.0, max_new_tokens=7)
    options = Options(draft=bool(cfg.mtp_depth))
    got = generate(kept, cfg, [[1, 2, 3]], sampling, options).completions[0].tokens
    # Greedy tokens are the best after all before them, in one pass of the other parameters.
    row = jnp.asarray([[1, 2, 3, *got]], jnp.int32)
    best = compiled(lambda p, t: transformer.logits(p, t, cfg))(wide, row)[0].argmax(-1)
    assert best[2:-1].tolist() == list(got)


@pytest.mark.slow
@pytest.mark.exhaustive  # each half is shown: decoding, and products of the codes
def test_they_decode_in_fp8_what_the_exact_numbers_decode(released):
    cfg, kept, wide = released
    sampling = Sampling(temperature=0.0, max_new_tokens=7)
    ours, theirs = (
        generate(p, cfg, [[1, 2, 3]], sampling, Options(single(precision))).completions
        for p, precision in ((kept, gemm.FP8), (wide, EXACT))
    )
    assert ours == theirs


def test_the_gradient_passes_through_a_kept_matrix():
    w = jnp.asarray(np.random.default_rng(0).standard_normal((130, 140)), jnp.float32)
    x = jnp.asarray(np.random.default_rng(1).standard_normal((3, 130)), jnp.float32)
    kept = jax.jit(quantize, static_argnums=1)(w, (128, 128))

    def pulled(form):
        return jax.jit(jax.grad(lambda x: (linear(x, form, precision=FP32) ** 2).sum()))(x)

    plain = pulled(FP32.from_codes(kept))
    for form in (kept, Weight(kept, FP32.from_codes(kept))):
        np.testing.assert_array_equal(pulled(form), plain)


def test_power_of_two_scales_are_read_in_bfloat16_without_a_loss():
    w = jnp.asarray(np.random.default_rng(0).standard_normal((130, 2, 140)), jnp.float32)
    q = jax.jit(quantize, static_argnums=(1, 2))(w, (128, 1, 128), True)
    operand, wide = jax.jit(lambda q: (gemm.FP8.from_codes(q), FP32.from_codes(q)))(q)
    assert (operand.shape, operand.dtype) == ((130, 280), jnp.bfloat16)
    np.testing.assert_array_equal(np.asarray(operand).astype(np.float32), wide)
