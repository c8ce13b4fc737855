"""One tree of Specs says what a model is: values, sizes, masks and names all follow from it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsjax import params
from dsjax.model import transformer
from dsjax.params import Spec
from tests.agreement import TINY, V2_MOE

SPECS = transformer.specs(TINY)


def by_name(tree):
    return dict(params.paths(tree))


def test_init_draws_matrices_of_the_given_deviation_and_norms_of_one():
    spec = {"w": Spec((300, 200), ("embed", None)), "norm": Spec((7,), (None,), "ones"),
            "bias": Spec((5,), (None,), "zeros")}
    values = params.init(spec, jax.random.key(0), 0.006)
    w = np.asarray(values["w"])
    # 60,000 draws: the deviation of the deviation is 0.006 / sqrt(120,000), of the mean a 245th.
    assert w.std() == pytest.approx(0.006, abs=5 * 0.006 / 120_000**0.5)
    assert abs(w.mean()) < 5 * 0.006 / 60_000**0.5
    np.testing.assert_array_equal(values["norm"], np.ones(7))
    np.testing.assert_array_equal(values["bias"], np.zeros(5))


def test_adding_a_leaf_moves_no_other_and_equal_shapes_differ():
    spec = Spec((4, 3), ("embed", None))
    few = params.init({"b": spec, "d": spec}, jax.random.key(1), 1.0)
    more = params.init({"a": spec, "b": spec, "c": spec, "d": spec}, jax.random.key(1), 1.0)
    for name in few:
        np.testing.assert_array_equal(few[name], more[name])
    assert len({np.asarray(w).tobytes() for w in more.values()}) == 4


def test_stacked_layers_start_different_and_with_the_deviation_of_one():
    spec = params.stack({"w": Spec((50, 40), ("embed", None))}, 6)
    w = np.asarray(params.init(spec, jax.random.key(2), 1.0)["w"])
    assert w.shape == (6, 50, 40)
    correlations = np.corrcoef(w.reshape(6, -1))
    # Correlation of 2,000 independent pairs has deviation 1 / sqrt(2,000).
    assert np.abs(correlations - np.eye(6)).max() < 5 / 2000**0.5
    np.testing.assert_allclose(w.std(axis=(1, 2)), 1.0, atol=5 / 4000**0.5)


def test_stack_leads_with_its_axis_and_keeps_roles():
    one = Spec((3, 2), ("embed", "head"), is_product=True, contract_dims=1)
    twice = params.stack(params.stack(one, 5, "expert"), 7)
    assert twice == dataclasses.replace(
        one, shape=(7, 5, 3, 2), axes=("layer", "expert", "embed", "head"), batch_dims=2)
    assert twice.is_decayed
    assert not params.stack(Spec((4,), (None,), "ones"), 7).is_decayed


def test_size_is_that_of_the_values_before_any_exists():
    values = jax.eval_shape(lambda: transformer.init(TINY, jax.random.key(0)))
    assert params.size(SPECS) == sum(a.size for a in jax.tree.leaves(values))
    shapes = jax.tree.map(lambda a: (a.shape, a.dtype), params.abstract(SPECS, jnp.bfloat16))
    assert shapes == jax.tree.map(lambda a: (a.shape, jnp.dtype(jnp.bfloat16)), values)


def test_masks_decay_matrices_only_and_leave_the_bias_to_its_rule():
    decay, trainable = by_name(params.decay_mask(SPECS)), by_name(params.trainable_mask(SPECS))
    for name, is_decayed in decay.items():
        last = name.split(".")[-1]
        assert is_decayed == (last.startswith("w_") or last in ("embed", "head", "centroids")), name
    still = {name for name, is_trainable in trainable.items() if not is_trainable}
    assert still == {"moe.ffn.router.bias", "mtp.block.ffn.router.bias"}


def test_low_precision_may_hold_attention_and_feed_forwards_and_nothing_else():
    for name, spec in params.paths(SPECS):
        is_layer_matrix = (".attn.w_" in name or ".ffn." in name) and ".w_" in name
        assert spec.is_product == is_layer_matrix, name
    products = [spec for _, spec in params.paths(SPECS) if spec.is_product]
    assert all(len(s.shape) >= s.batch_dims + s.contract_dims + 1 for s in products)


def test_names_are_the_papers_and_absent_parts_have_none():
    names = by_name(SPECS)
    assert {"embed", "head", "norm", "dense.attn.w_dq", "moe.ffn.experts.w_gate_up",
            "moe.ffn.shared.w_down", "mtp.w_proj"} <= set(names)
    plain = dataclasses.replace(TINY, moe=dataclasses.replace(V2_MOE, shared_experts=0),
                                mtp_depth=0)
    assert not [n for n in by_name(transformer.specs(plain))
                if "shared" in n or "bias" in n or "mtp" in n]


def test_a_spec_without_an_axis_for_every_dim_is_refused():
    with pytest.raises(AssertionError, match="differ in length"):
        Spec((3, 2), ("embed",))


def test_every_seed_is_a_key_of_its_own_and_small_ones_are_as_they_were():
    seeds = [0, 1, 2**32 - 1, 2**32, 2**32 + 1, 2**62 + 1, 2**63 - 1]
    keys = {tuple(jax.random.key_data(params.key_of(seed)).tolist()) for seed in seeds}
    assert len(keys) == len(seeds)
    for seed in seeds[:3]:
        assert (params.key_of(seed) == jax.random.key(seed)).all()
