"""Each arm takes out the one ingredient that it names; the table is arithmetic on the curves."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsjax.numerics import accumulate, gemm
from experiments.common import arms
from experiments.common.command import Asked
from experiments.fp8_vs_bf16 import ingredients, report, training

RNG = np.random.default_rng(0)
WILD = np.exp(3 * RNG.standard_normal((256, 1))) * np.exp(3 * RNG.standard_normal((1, 384)))
X = jnp.asarray(WILD * RNG.standard_normal((256, 384)), jnp.float32)
W = jnp.asarray(RNG.standard_normal((384, 256)), jnp.float32)


def same(a, b):
    return np.array_equal(np.asarray(a, np.float32), np.asarray(b, np.float32))


def operands(precision, x, w, grad):
    """What a precision makes of an input, a weight and a gradient, as one program."""
    return jax.jit(lambda x, w, grad: (precision.quantize_for_fprop(x),
                                       precision.quantize_weight(w),
                                       precision.quantize_grad(grad)))(x, w, grad)


def test_e5m2_gradients_change_both_operands_of_the_gradient_and_nothing_else():
    whole, mine = gemm.FP8, ingredients.E5M2_GRADIENTS
    made, other = operands(whole, X, W, X), operands(mine, X, W, X)
    assert same(made[0], other[0])
    assert same(made[1], other[1])
    for operand, exact in (("by_row", X), ("by_column", X)):
        coarse, fine = (np.asarray(getattr(grad, operand), np.float64)
                        for grad in (other[2], made[2]))
        relative = np.abs(coarse / np.asarray(exact, np.float64) - 1)
        assert np.median(relative) > 1.5 * np.median(np.abs(fine / np.asarray(exact) - 1))
        mantissa = np.frexp(coarse[coarse != 0])[0] * 8  # 1 bit and 2 after it
        np.testing.assert_array_equal(mantissa, np.round(mantissa))


def test_blocks_of_gradients_change_dgrad_s_operand_alone():
    of_tiles, of_blocks = (jax.jit(p.quantize_grad)
                           for p in (gemm.FP8, ingredients.BLOCK_GRADIENTS))
    whole, mine = of_tiles(X), of_blocks(X)
    assert same(whole.by_column, mine.by_column)
    assert not same(whole.by_row, mine.by_row)
    # A row far below its block's largest loses everything.
    outlier = np.ones((256, 384), np.float32)
    outlier[0, 0] = 1e7
    assert not np.any(np.asarray(of_blocks(outlier).by_row)[1:128, :128])
    assert np.all(np.asarray(of_tiles(outlier).by_row)[1:] == 1)


def test_one_scale_a_tensor_loses_small_entries_that_tiles_keep():
    outlier = np.ones((256, 256), np.float32)
    outlier[0, 0] = 1e7
    for kept, lost in zip(*(map(np.asarray, operands(p, outlier, outlier, outlier)[:2])
                            for p in (gemm.FP8, ingredients.PER_TENSOR)), strict=True):
        assert np.all(kept[128:] == 1)
        assert not np.any(lost[128:])


@pytest.mark.parametrize("promote", [None, 128])
def test_registers_sum_all_three_products_as_the_simulation_does(promote):
    mine = ingredients.registers(promote)
    x, w, grad = operands(mine, X, W, X @ W)
    turned = jax.jit(mine.quantize_for_wgrad)(X)
    products = jax.jit(lambda x, w, grad, turned: (
        mine.fprop(x, w), mine.dgrad(grad, w), mine.wgrad(turned, grad), gemm.FP8.fprop(x, w)))
    *found, other = products(x, w, grad, turned)
    simulated = jax.jit(accumulate.product_fast, static_argnums=2)
    for actual, a, b in zip(found, (x, grad.by_row, turned.T), (w, w.T, grad.by_column),
                            strict=True):
        expected = simulated(a, b, promote)
        np.testing.assert_array_equal(actual, expected)
        assert not same(actual, expected.astype(jnp.bfloat16))
    assert not same(found[0], other)


def test_arms_differ_from_bf16_of_their_seed_in_precision_and_length_alone():
    found = training.all_arms()
    assert len({arm.stem for arm in found}) == len(found)
    def group(run):
        return run.name, run.train.batch_size * run.train.seq_len, run.seed

    bases = {group(arm.run): arm.run for arm in found if arm.name == "bf16"}
    for arm in found:
        base = bases[group(arm.run)]
        train = dataclasses.replace(base.train, steps=arm.run.train.steps)
        rate = dataclasses.replace(base.learning_rate, constant_steps=arm.run.train.steps)
        assert arms.plain(arm.run) == arms.plain(dataclasses.replace(
            base, train=train, learning_rate=rate, precision=arm.run.precision))
        assert arm.run.train.steps % report.EVALUATED == 0
    tiny = [arm for arm in found if arm.run.name == "tiny"]
    assert min(arm.run.train.steps for arm in tiny if arm.name in training.PRECISIONS) == 2000


def made(arm, seed, curve, heldout):
    config = {"name": "tiny", "train": {"batch_size": 2, "seq_len": 5}}
    return {"arm": arm, "seeds": [seed], "claim": f"tiny: {arm} of this", "config": config,
            "next_token": curve, "heldout_nats": {str(len(curve)): heldout, "110": 9.0},
            "commit": "c", "is_clean": True}


def test_a_row_compares_with_bf16_of_the_same_seed_over_the_arm_s_own_steps():
    found = [made("bf16", 0, [4.0] * 120, 4.0), made("bf16", 1, [5.0] * 120, 5.0),
             made("fp8", 1, [5.01] * 120, 5.05), made("fp8", 0, [4.016] * 120, 4.0),
             made("short", 0, [3.996] * 110, 9.0)]
    found[0]["heldout_nats"]["110"] = 10.0
    row = report.row(report.pairs(found, ("tiny", 10), "fp8"))
    assert row == ["tiny", "10", "fp8 of this", "120", "2", "4.5250", "+0.500 %", "+0.300 %",
                   "0.316 %", "0.400 %", "0.300 %", "50.00 %"]
    row = report.row(report.pairs(found, ("tiny", 10), "short"))
    assert row[3:] == ["110", "1", "9.0000", "-10.000 %", "-0.100 %", "0.100 %", "0.100 %",
                       "0.100 %", "100.00 %"]


def test_the_table_and_the_figure_are_drawn_from_records(tmp_path):
    found = [made(arm, 0, [4.0] * 120, 4.0)
             for arm in ("bf16", "fp8", "a", "b", "c", "d", "e", "control")]
    asked = Asked("python -m x", tmp_path, tmp_path / "runs")
    report.write(asked, found, [])
    record = (tmp_path / "records" / "training.json").read_text()
    first = (tmp_path / "figure.svg").read_text()
    assert "tiny" in first
    assert all(arm in first for arm in ("fp8", "control"))
    redraw = dataclasses.replace(asked, values={"redraw": True})
    report.write(redraw, found[:-1], ["control"])
    assert "control" not in (tmp_path / "figure.svg").read_text()
    assert (tmp_path / "records" / "training.json").read_text() == record
    report.write(redraw, found, [])
    assert (tmp_path / "figure.svg").read_text() == first
