"""Batched experts drop no token: they are the plain form and the reference, with every gradient,
however unequal the loads.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsjax.numerics import gemm
from dsjax.numerics.precision import BF16, FP32, Weight
from dsjax.ops import experts as grouped
from dsjax.ops.expert_mlp import batched as products_of
from dsjax.ops.experts import (
    experts_batched,
    experts_dense,
    experts_plain,
    experts_tiled,
    make_plan,
)
from tests.agreement import FP64, close, compiled, pulled
from tests.reference import moe

D, F = 6, 5


def distinct(rng, tokens, per_token, count, favored=None):
    """K different experts a token; `favored` is among them wherever given."""
    rows = np.array([rng.permutation(count)[:per_token] for _ in range(tokens)])
    if favored is not None:
        for row in rows:
            if favored not in row:
                row[-1] = favored
    return rows.astype(np.int32)


ROUTINGS = {
    "7 experts, 5 tokens": (7, lambda rng: distinct(rng, 5, 3, 7)),
    "even loads": (5, lambda rng: distinct(rng, 60, 2, 5)),
    "all to one, three tiles over": (4, lambda rng: np.full((300, 1), 2, np.int32)),
    "one in every token's choice": (7, lambda rng: distinct(rng, 130, 2, 7, favored=6)),
    "two experts overflow": (9, lambda rng: np.tile(np.array([[3, 8]], np.int32), (90, 1))),
    "one token": (7, lambda rng: distinct(rng, 1, 2, 7)),
    "one expert": (1, lambda rng: np.zeros((9, 1), np.int32)),
}


def inputs(name):
    rng = np.random.default_rng(0)
    count, choose = ROUTINGS[name]
    experts = choose(rng)
    x, weights = rng.standard_normal((len(experts), D)), rng.uniform(0.1, 1, experts.shape)
    gate_up = rng.standard_normal((count, D, 2, F)) / D**0.5
    down = rng.standard_normal((count, F, D)) / F**0.5
    return jnp.asarray(experts), (x, weights, gate_up, down), rng.standard_normal(x.shape)


@pytest.mark.parametrize("name", list(ROUTINGS))
def test_batched_experts_agree_with_the_plain_form_and_the_reference(name):
    experts, operands, cotangent = inputs(name)

    def batched(x, weights, gate_up, down):
        return experts_batched(x, experts, weights, gate_up, down, mlp=products_of(FP64))

    def plain(x, weights, gate_up, down):
        return experts_plain(x, experts, weights, gate_up, down)

    with jax.enable_x64(True):
        y, gradients = pulled(batched, cotangent, *operands)
        plain_y, plain_gradients = pulled(plain, cotangent, *operands)
    close(y, plain_y, 1e-13)
    for actual, expected in zip(gradients, plain_gradients):
        close(actual, expected, 1e-12)
    x, weights, gate_up, down = operands
    experts = np.asarray(experts)
    for t in range(min(len(x), 20)):
        expected = sum(
            weight * moe.swiglu({"w_gate_up": gate_up[e], "w_down": down[e]}, x[t])
            for e, weight in zip(experts[t], weights[t])
        )
        close(y[t], expected, 1e-12)


@pytest.mark.parametrize("name", list(ROUTINGS))
def test_every_assignment_has_exactly_one_row_of_its_expert(name):
    experts, _, _ = inputs(name)
    count = ROUTINGS[name][0]
    capacity = grouped._capacity(experts.size, count)
    plan = compiled(lambda experts: make_plan(experts, count, capacity))(experts)
    plan, experts = jax.tree.map(np.asarray, (plan, experts))
    batched = plan.source.reshape(count, capacity)
    rows = [(e, a) for e in range(count) for a in batched[e]]
    for i in range(int(plan.tiles_used)):
        rows += [(plan.tile_expert[i], a) for a in plan.tile_source[i]]
    placed = [(e, a) for e, a in rows if a < experts.size]
    assert sorted(a for _, a in placed) == list(range(experts.size))
    assert all(experts.reshape(-1)[a] == e for e, a in placed)
    assert np.all(plan.tile_source[int(plan.tiles_used) :] == experts.size)
    is_over = plan.slot.reshape(-1) == count * capacity
    assert is_over.sum() == np.maximum(np.bincount(experts.ravel()) - capacity, 0).sum()
    if "over" in name or "all to one" in name:
        assert is_over.any()


def test_the_order_of_tokens_does_not_matter():
    experts, (x, *rest), _ = inputs("one in every token's choice")
    weights, *matrices = rest
    experts = np.asarray(experts)
    order = np.random.default_rng(1).permutation(len(x))
    f = compiled(lambda x, e, w: experts_batched(x, e, w, *matrices, mlp=products_of(FP64)))
    with jax.enable_x64(True):
        y, moved = f(x, experts, weights), f(x[order], experts[order], weights[order])
    close(moved, np.asarray(y)[order], 1e-13)


FORMS = pytest.mark.parametrize("form", [experts_tiled, experts_dense], ids=["tiled", "dense"])


@FORMS
@pytest.mark.parametrize("name", list(ROUTINGS))
def test_forms_for_decoding_agree_with_the_plain_one(name, form):
    experts, operands, _ = inputs(name)
    x, *rest = operands

    @compiled
    def found(x, experts, weights, *matrices):
        return form(x, experts, weights, *matrices, mlp=products_of(FP64))

    with jax.enable_x64(True):
        plain = compiled(experts_plain)
        close(found(x, experts, *rest), plain(x, experts, *rest), 1e-13)
        chosen = np.asarray(experts)
        some = np.where(chosen == chosen[0, 0], -1, chosen)  # elsewhere: adds nothing
        weights = np.where(some < 0, 0.0, rest[0])
        close(found(x, some, *rest), plain(x, experts, weights, *rest[1:]), 1e-13)


@pytest.mark.parametrize("precision", [BF16, gemm.FP8], ids=["bfloat16", "fp8"])
def test_every_expert_at_once_rounds_as_tiles_do(precision):
    """Operands are quantized alike, so that only sums in another order differ."""
    experts, operands, _ = inputs("7 experts, 5 tokens")
    operands = [a.astype(np.float32) for a in operands]
    dense, tiled = jax.jit(lambda x, *rest: tuple(
        form(x, experts, *rest, mlp=products_of(precision))
        for form in (experts_dense, experts_tiled)))(*operands)
    close(dense, tiled, 2**-21)


def test_an_expert_without_numbers_spoils_the_tokens_that_chose_it_alone():
    experts, operands, _ = inputs("7 experts, 5 tokens")
    x, weights, gate_up, down = (a.astype(np.float32) for a in operands)
    broken = int(experts[0, 0])
    down[broken] = np.nan
    y = jax.jit(lambda *args: experts_dense(*args, mlp=products_of(FP32)))(
        x, experts, weights, gate_up, down)
    np.testing.assert_array_equal(np.isnan(y).any(1), (np.asarray(experts) == broken).any(1))


@FORMS
def test_a_tokens_bits_do_not_depend_on_what_others_choose(form):
    rng = np.random.default_rng(2)
    _, (_, _, *matrices), _ = inputs("one in every token's choice")
    matrices = [jnp.asarray(a, jnp.float32) for a in matrices]
    x = jnp.asarray(rng.standard_normal((150, D)), jnp.float32)
    mine = np.sort(distinct(rng, 20, 3, 7), axis=1)
    f = compiled(lambda x, e, w: form(x, e, w, *matrices, mlp=products_of(FP32)))
    found = []
    for favored in (None, 0, 6):
        experts = np.sort(np.concatenate([mine, distinct(rng, 130, 3, 7, favored)]), axis=1)
        weights = jnp.asarray(experts + 1, jnp.float32) / 7
        noise = jnp.asarray(rng.standard_normal((130, D)), jnp.float32)
        found.append(np.asarray(f(jnp.concatenate([x[:20], noise]), experts, weights))[:20])
    for other in found[1:]:
        assert other.tobytes() == found[0].tobytes()


@pytest.mark.parametrize("precision", [FP32, BF16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["7 experts, 5 tokens", "two experts overflow"])
def test_lower_precisions_round_operands_only(name, precision):
    experts, operands, cotangent = inputs(name)
    x, weights, gate_up, down = (jnp.asarray(a, jnp.float32) for a in operands)
    eps = 2**-8 if precision is BF16 else 2**-22

    def f(x, weights, gate_up, down):
        return experts_batched(x, experts, weights, gate_up, down, mlp=products_of(precision))

    y, gradients = pulled(f, jnp.asarray(cotangent, jnp.float32), x, weights, gate_up, down)
    with jax.enable_x64(True):
        exact, exact_gradients = pulled(
            lambda x, w, g, d: experts_plain(x, experts, w, g, d), cotangent, *operands)
    # Two (forward) or four (gradients) roundings of operands by eps / 2 in sums of at most six
    # products of mixed sign: a few eps of the largest entry; 8 leaves room for cancellation.
    close(y, exact, 8 * eps)
    for actual, expected in zip(gradients, exact_gradients):
        close(actual, expected, 8 * eps)


def test_quantized_weights_give_the_same_numbers_and_their_masters_the_gradients():
    experts, operands, cotangent = inputs("7 experts, 5 tokens")
    x, weights, gate_up, down = (jnp.asarray(a, jnp.float32) for a in operands)
    quantized = [
        Weight(w, BF16.quantize_weight(w.reshape(7, w.shape[1], -1))) for w in (gate_up, down)
    ]

    def f(x, weights, gate_up, down):
        return experts_batched(x, experts, weights, gate_up, down, mlp=products_of(BF16))

    cotangent = jnp.asarray(cotangent, jnp.float32)
    y, gradients = pulled(f, cotangent, x, weights, gate_up, down)
    y_quantized, gradients_quantized = pulled(f, cotangent, x, weights, *quantized)
    np.testing.assert_array_equal(y, y_quantized)
    masters = [*gradients_quantized[:2], *(g.master for g in gradients_quantized[2:])]
    jax.tree.map(np.testing.assert_array_equal, list(gradients), masters)
