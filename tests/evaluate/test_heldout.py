"""Held-out numbers are those of the model: nothing that only training does changes them."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from dsjax.data import pack
from dsjax.data.loader import heldout_batches
from dsjax.evaluate import heldout
from dsjax.layers.backend import single
from dsjax.model import transformer
from dsjax.model.loss import Batch
from tests.train.small_run import MODEL


def test_no_token_is_dropped_for_lack_of_capacity():
    """V2 drops in training only (V2 report sec. 2.2.4); that the factor bites is shown too."""
    free = dataclasses.replace(MODEL, mtp_depth=0, layers=1, dense_layers=0)
    assert free.moe is not None
    tight = dataclasses.replace(free, moe=dataclasses.replace(free.moe, capacity_factor=0.25))
    params = transformer.init(free, jax.random.key(0))
    tokens = np.random.default_rng(1).integers(0, free.vocab, (2, 14), np.int32)
    batch = Batch(tokens, np.ones_like(tokens), np.ones(tokens.shape, np.float32))
    sums = [jax.jit(heldout.make_heldout_step(cfg, single()))(params, batch)
            for cfg in (free, tight)]
    jax.tree.map(np.testing.assert_array_equal, *sums)

    def x(cfg):
        return jax.jit(lambda p: transformer.hidden(p, tokens, batch.segments, cfg, single()).x)

    assert np.abs(x(tight)(params) - x(free)(params)).max() > 1e-3


def judged(documents: list[list[int]], packing=pack.segments, length: int = 4) -> heldout.Heldout:
    """Evaluate a model that pays one nat a target on documents; id 0 ends them, others are 2 bytes.
    """
    rows = packing(pack.joined(documents, 0), length, 0)
    sizes = np.array([0] + [2] * 9)

    def step(_, batch):
        targets = float(batch.weights.sum())
        return heldout.HeldoutSums(*np.array([[targets], [targets]]), np.zeros(0))

    return heldout.evaluate(step, None, heldout_batches(rows, 3, sizes))


def test_documents_of_one_token_have_a_loss_but_no_bytes():
    found = judged([[1]] * 5)
    assert (found.nll, found.targets) == (1.0, 5)  # their end tokens
    assert math.isnan(found.bits_per_byte)
    assert "no bytes" in heldout.remark(found)


def test_an_end_token_is_no_text():
    found = judged([[1, 2], [3, 4, 5]], pack.concat)
    assert found.targets == 7
    assert found.bits_per_byte == pytest.approx(7 / math.log(2) / 10)
    assert heldout.remark(found) is None


def test_fewer_rows_than_a_batch_count_once():
    assert judged([[1, 2]], pack.concat).targets == 3


def test_a_loss_that_is_not_finite_and_none_at_all_are_said():
    lost = dataclasses.replace(judged([[1, 2]]), nll=math.nan)
    assert "not finite" in heldout.remark(lost)
    assert "no token to predict" in heldout.remark(dataclasses.replace(lost, targets=0))


def test_nothing_to_evaluate_on_is_no_number():
    def step(_, batch):
        return heldout.HeldoutSums(np.zeros(1), np.zeros(1), np.zeros(0))

    rows = pack.concat(pack.joined([[1, 2]], 0), 4, 0)
    found = heldout.evaluate(step, None, heldout_batches(rows, 3, np.zeros(9, int)))
    assert math.isnan(found.nll)
    assert math.isnan(found.bits_per_byte)
