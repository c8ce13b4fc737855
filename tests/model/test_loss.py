"""The complete training loss, its parts and every leaf of its gradient are the reference's, and do
not depend on how a batch is cut, padded or packed.

All batches have one shape, so that each case is compiled once: a part of a batch is the batch with
its other rows turned to padding.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsjax.config.loss import LossConfig
from dsjax.layers.router import RouterStats
from dsjax.model import loss as losses
from dsjax.model import transformer
from dsjax.model.loss import Batch
from tests import agreement
from tests.agreement import (
    TINY,
    V2_MOE,
    YARN,
    as_reference,
    batch_arrays,
    close,
    compiled,
    double,
    draw,
    gradients_close,
    reference_config,
)
from tests.reference import losses as reference
from tests.reference import model, moe

V3_LOSS = LossConfig(balance=0.1)
V2_LOSS = LossConfig(balance=0.0, expert_balance=0.3, device_balance=0.05,
                     communication_balance=0.02)
CASES = {
    "V3, two prediction depths": (TINY, V3_LOSS),
    "V2, one depth, YaRN": (
        dataclasses.replace(TINY, moe=V2_MOE, attention=agreement.MLA_DIRECT, rope=YARN,
                            mtp_depth=1, layers=2), V2_LOSS),
    "dense, grouped attention, three depths": (
        dataclasses.replace(TINY, moe=None, layers=1, dense_layers=1, attention=agreement.GQA,
                            mtp_depth=3), V3_LOSS),
}
MTP_WEIGHT = 0.3


def as_batch(tokens, segments, weights):
    return Batch(jnp.asarray(tokens), jnp.asarray(segments), jnp.asarray(weights))


@functools.cache
def programs(name):
    """The loss and its gradient, compiled once a case and batch shape."""
    cfg, weights = CASES[name]

    def f(p, batch, totals):
        return losses.loss(p, batch, losses.Objective(totals, MTP_WEIGHT, weights), cfg, double())

    return compiled(jax.value_and_grad(f, has_aux=True)), compiled(losses.count)


@functools.cache
def parameters(name):
    with jax.enable_x64(True):
        return draw(transformer.specs(CASES[name][0]), 0)


def evaluate(name, arrays, totals=None):
    """Loss, parts, gradient and totals of a batch, as NumPy arrays."""
    gradient, count = programs(name)
    with jax.enable_x64(True):
        batch = as_batch(*arrays)
        totals = count(batch) if totals is None else totals
        (total, parts), grads = gradient(parameters(name), batch, totals)
    return jax.tree.map(np.asarray, (total, parts, grads, totals))


@functools.cache
def whole(name):
    return evaluate(name, batch_arrays(3, 9, TINY.vocab, 1))


def balance_v2(routings, cfg, weights):
    """Weighted sum of V2's three losses over layers of the mean over rows."""
    def one(routing):
        parts = reference.balance_losses_v2(routing, cfg, cfg.groups, cfg.groups_per_token)
        return (weights.expert_balance * parts.expert + weights.device_balance * parts.device
                + weights.communication_balance * parts.communication)

    return reference.over_layers_and_rows(one, routings)


def reference_total(name, p):
    cfg, weights = CASES[name]
    sizes = reference_config(cfg)
    result = reference.training_loss(p, *batch_arrays(3, 9, TINY.vocab, 1), sizes, MTP_WEIGHT,
                                     weights.balance)
    extra = balance_v2(result.routings, sizes, weights) if cfg.moe is not None else 0.0
    return result.total + extra, result, weights.balance * result.balance + extra


@pytest.mark.parametrize("name", list(CASES))
def test_loss_and_its_parts_agree_with_the_reference(name):
    cfg, _ = CASES[name]
    total, parts, _, totals = whole(name)
    expected, result, balance = reference_total(name, as_reference(parameters(name)))
    close(total, expected, 1e-12)
    close(totals.targets, result.weight_total, 1e-14)
    close(parts.nll[0] / totals.targets, result.main, 1e-12)
    close(parts.nll[1:] / totals.targets, result.mtp, 1e-12)
    close(parts.balance, balance, 1e-12)
    if cfg.moe is None:
        assert parts.loads.size == 0
        return
    assert balance > 0.01
    loads = np.stack([moe.expert_load(rows, cfg.moe.experts) for rows in result.routings])
    np.testing.assert_array_equal(parts.loads, loads)
    assert len(loads) == cfg.moe_layers + cfg.mtp_depth


@pytest.mark.parametrize("name", list(CASES))
def test_every_leaf_of_the_gradient_agrees_with_the_complex_step(name):
    _, _, gradient, _ = whole(name)
    gradients_close(as_reference(gradient), lambda p: reference_total(name, p)[0],
                    as_reference(parameters(name)))


def test_correct_counts_the_positions_whose_likeliest_token_is_the_target():
    name = "V3, two prediction depths"
    cfg, _ = CASES[name]
    tokens, segments, weights = batch_arrays(3, 9, TINY.vocab, 1)
    _, parts, _, _ = whole(name)
    outputs = model.forward(as_reference(parameters(name)), tokens[:, :-1], segments[:, :-1],
                            reference_config(cfg))
    for depth in range(cfg.mtp_depth + 1):
        correct = targets = 0.0
        for b, t in np.ndindex(3, 9 - depth):
            ahead = t + depth + 1
            if segments[b, t] == segments[b, ahead] != 0:
                logits = outputs[b].logits if depth == 0 else outputs[b].mtp_logits[depth - 1]
                correct += weights[b, ahead] * (logits[t].argmax() == tokens[b, ahead])
                targets += weights[b, ahead]
        close(parts.correct[depth], correct, 1e-14)
        close(parts.targets[depth], targets, 1e-14)


def test_gradients_of_microbatches_add_up_to_that_of_the_batch():
    name = "V3, two prediction depths"
    arrays = batch_arrays(3, 9, TINY.vocab, 1)
    total, parts, gradient, totals = whole(name)
    tokens, segments, weights = arrays
    keep = np.eye(3, dtype=np.int32)[:, :, None]
    cuts = [evaluate(name, (tokens, segments * keep[i], weights), totals) for i in range(3)]
    close(sum(cut[0] for cut in cuts), total, 1e-13)
    for i, whole_tree in [(1, parts), (2, gradient)]:
        summed = jax.tree.map(lambda *leaves: sum(leaves), *(cut[i] for cut in cuts))
        jax.tree.map(lambda a, b: close(a, b, 1e-12), summed, whole_tree)


def same_losses(one, other):
    """Loss and gradient equal up to rounding, and every count."""
    close(one[0], other[0], 1e-13)
    jax.tree.map(lambda a, b: close(a, b, 1e-12), one[2], other[2])
    jax.tree.map(lambda a, b: close(a, b, 1e-12), one[1], other[1])


def placed(documents, places, rng):
    """Rows [3, 10] with document d at `places[d]` = (row, start, segment), and noise elsewhere."""
    tokens = rng.integers(0, TINY.vocab, (3, 10), dtype=np.int32)
    segments, weights = np.zeros((3, 10), np.int32), rng.uniform(size=(3, 10))
    for (ids, counts), (row, start, segment) in zip(documents, places):
        span = slice(start, start + len(ids))
        tokens[row, span], weights[row, span], segments[row, span] = ids, counts, segment
    return tokens, segments, weights


def two_documents(rng):
    return [(rng.integers(0, TINY.vocab, n, dtype=np.int32), rng.uniform(size=n)) for n in (4, 5)]


@pytest.mark.parametrize("name", ["V3, two prediction depths", "V2, one depth, YaRN"])
def test_padding_on_either_side_and_padding_rows_change_nothing(name):
    rng = np.random.default_rng(3)
    documents = two_documents(rng)
    one = evaluate(name, placed(documents, [(0, 0, 1), (1, 0, 1)], rng))
    other = evaluate(name, placed(documents, [(2, 1, 7), (0, 4, 1)], rng))
    same_losses(one, other)


def test_packed_documents_lose_what_they_lose_in_rows_of_their_own():
    rng = np.random.default_rng(4)
    documents = two_documents(rng)
    packed = placed(documents, [(0, 0, 1), (0, 4, 2)], rng)
    apart = placed(documents, [(0, 0, 1), (1, 0, 1)], rng)
    name = "dense, grouped attention, three depths"
    same_losses(evaluate(name, packed), evaluate(name, apart))
    # With experts the balance losses differ, for they are by row; the tokens' losses do not.
    name = "V3, two prediction depths"
    one, other = evaluate(name, packed)[1], evaluate(name, apart)[1]
    for part in ("nll", "correct", "targets", "loads"):
        close(getattr(one, part), getattr(other, part), 1e-12)
    assert abs(one.balance - other.balance) > 1e-4


def test_target_weights_stop_at_documents_padding_and_the_row():
    segments = jnp.array([[1, 1, 2, 2, 2, 0, 0]])
    weights = jnp.array([[9.0, 2.0, 9.0, 4.0, 5.0, 9.0, 9.0]])
    batch = Batch(jnp.zeros((1, 7), jnp.int32), segments, weights)
    one, two, six = compiled(lambda b: [losses.target_weights(b, n) for n in (1, 2, 6)])(batch)
    assert one.tolist() == [[2, 0, 4, 5, 0, 0]]
    assert two.tolist() == [[0, 0, 5, 0, 0, 0]]
    assert six.tolist() == [[0] * 6]
    totals = compiled(losses.count)(batch)
    assert (totals.targets, totals.rows) == (11, 1)


def test_log_probabilities_of_tokens_are_the_references_where_they_have_a_past():
    name = "V3, two prediction depths"
    cfg, _ = CASES[name]
    tokens, segments, _ = batch_arrays(3, 9, TINY.vocab, 1)
    with jax.enable_x64(True):
        found = np.asarray(compiled(lambda p: losses.token_logprobs(
            p, tokens, segments, cfg, double()))(parameters(name)))
    outputs = model.forward(as_reference(parameters(name)), tokens[:, :-1], segments[:, :-1],
                            reference_config(cfg))
    wanted = np.zeros(tokens.shape)
    for b, t in np.ndindex(3, 9):
        if segments[b, t] == segments[b, t + 1] != 0:
            wanted[b, t + 1] = -reference.negative_log_likelihood(outputs[b].logits[t],
                                                                  tokens[b, t + 1])
    close(found, wanted, 1e-12)


def test_a_batch_of_padding_has_loss_zero():
    name = "V3, two prediction depths"
    tokens, segments, weights = batch_arrays(3, 9, TINY.vocab, 1)
    total, parts, gradient, _ = evaluate(name, (tokens, 0 * segments, weights))
    assert total == 0
    assert not np.any(parts.loads)
    assert all(np.all(g == 0) for g in jax.tree.leaves(gradient))


def test_routers_biases_have_no_gradient():
    gradient = whole("V3, two prediction depths")[2]
    assert not np.any(gradient.moe.ffn.router.bias)
    assert not np.any(gradient.mtp.block.ffn.router.bias)


def test_bias_step_moves_against_the_load_of_each_layer():
    loads = jnp.array([[6.0, 2.0, 1.0, 3.0], [5.0, 5.0, 5.0, 5.0]])
    step = compiled(lambda loads: losses.bias_step(loads, 0.25))(loads)
    np.testing.assert_array_equal(step, [[-0.25, 0.25, 0.25, 0.0], [0, 0, 0, 0]])
    expected = moe.updated_bias(np.zeros(4), np.asarray(loads[0]), 0.25)
    np.testing.assert_array_equal(step[0], expected)


@pytest.mark.parametrize("experts", [3, 6, 10, 16, 160, 256, 384])
def test_bias_step_compares_with_the_mean_as_a_fraction(experts):
    """A load at the mean stays, beside 1 more or less, at counts up to whole pods' batches."""
    draw = np.random.default_rng(experts)
    mean = draw.integers(1, min(2**22, 2**31 // experts - 9), (200, 1))
    loads = mean + np.zeros((1, experts), np.int64)
    loads[:, 1:3] += np.outer(draw.integers(-1, 2, 200), [1, -1])  # the mean stays
    loads[::3, 0] += draw.integers(-1, 2, 67)  # the mean lies between counts
    loads = np.maximum(loads, 0)
    excess = experts * loads - loads.sum(axis=1, keepdims=True)
    step = compiled(lambda loads: losses.bias_step(loads, 1.0))(loads.astype(np.float32))
    np.testing.assert_array_equal(step, -np.sign(excess))


def test_even_routing_gives_balance_losses_of_one_and_collapse_the_derived_excess():
    cfg = dataclasses.replace(TINY, moe=dataclasses.replace(V2_MOE, groups=2, groups_per_token=2))
    names = ["sequence_balance", "expert_balance", "device_balance", "communication_balance"]

    def values(loads, group_share):
        loads, share = jnp.asarray([loads]), jnp.asarray([group_share])
        affinity = loads / loads.sum()
        stats = RouterStats(loads, loads / loads.sum() * 6, affinity, share)
        return compiled(lambda s: [getattr(losses, name)(s, cfg)[0] for name in names])(stats)

    np.testing.assert_allclose(values([2.0] * 6, [1.0, 1.0]), 1.0, rtol=1e-6)
    # Everything on experts 0 and 1 of device 0: f = 3, 3; f' = (3 + 3 + 0) / 3; f'' = 2 / 2.
    collapsed = values([6.0, 6.0, 0.0, 0.0, 0.0, 0.0], [1.0, 0.0])
    np.testing.assert_allclose(collapsed, [3.0, 3.0, 2.0, 1.0], rtol=1e-6)
