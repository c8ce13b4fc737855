"""Experts are chosen by their share of a task's tokens or gates, the fewest that carry enough."""

import dataclasses

import jax
import numpy as np
import pytest

from dsjax.config.run import RunConfig, TrainConfig
from dsjax.config.sft import ExpertsConfig, written
from dsjax.layers.backend import single
from dsjax.model import transformer
from dsjax.train.tuning import measure, rows
from dsjax.train.tuning.examples import Example
from tests import agreement

RUN = RunConfig("esft", dataclasses.replace(agreement.TINY, mtp_depth=0),
                TrainConfig(batch_size=2, seq_len=12), init_from="base", experts=ExpertsConfig())


@pytest.mark.parametrize(("threshold", "wanted"), [
    (0.5, {1: (2, 4), 2: (0,)}), (0.4, {1: (2,), 2: (0,)}), (0.41, {1: (2, 4), 2: (0,)}),
    (1.0, {1: (0, 1, 2, 3, 4), 2: (0,)}), (0.7, {1: (0, 2, 4), 2: (0,)})])
def test_the_fewest_experts_that_carry_the_threshold_are_chosen(threshold, wanted):
    """Of equal shares the lower number: 0 before 3, both a tenth and a half."""
    shares = np.asarray([[0.15, 0.1, 0.4, 0.15, 0.2, 0.0], [1.0, 0, 0, 0, 0, 0]])
    run = dataclasses.replace(RUN, experts=ExpertsConfig(threshold=threshold))
    assert measure.chosen(run, shares) == wanted
    assert ExpertsConfig(chosen=written(wanted)).by_layer == wanted


@pytest.mark.parametrize("score", ["token", "gate"])
def test_shares_are_those_of_each_real_token_s_routing(score):
    """Recounted token by token from the routes and gates of single rows; padding is no token."""
    rng = np.random.default_rng(3)
    made = [Example(rng.integers(0, 11, n).tolist(), [True] * n) for n in (13, 9, 8)]
    packed = rows.packed(made, 12)
    run = dataclasses.replace(RUN, experts=ExpertsConfig(score=score))
    p = agreement.draw(transformer.specs(run.model), 1)
    shares = measure.measured(run, packed, p, single(), None)
    backend = dataclasses.replace(single(), keep_routes=True, keep_gates=True)
    stats = jax.jit(lambda p, t, s: transformer.hidden(p, t, s, run.model, backend).stats)(
        p, packed.tokens[:, :-1], packed.segments[:, :-1])
    wanted = np.zeros((2, 6))
    for layer in range(2):
        for row in range(len(packed)):
            for at in range(12):
                if packed.segments[row, at]:
                    wanted[layer, np.asarray(stats.experts[layer, row, at])] += 1
    if score == "gate":
        sums = np.asarray(stats.gates.sum(1))
        np.testing.assert_allclose(sums.sum(-1), 2.5 * wanted.sum(-1) / 2, rtol=1e-5)  # scale 2.5
        assert ((sums > 0) == (wanted > 0)).all()
        wanted = sums
    np.testing.assert_allclose(shares, wanted / wanted.sum(-1, keepdims=True), rtol=1e-5)
