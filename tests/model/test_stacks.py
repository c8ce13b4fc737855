"""A model's layers are stacks by data: other stacks in another order need no change of a layer.

Names, order and start values of leaves belong to stored runs: those of today's models are pinned.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from dsjax import params
from dsjax.config.loss import LossConfig
from dsjax.config.model import ModelConfig, Stack
from dsjax.layers.backend import single
from dsjax.model import count, transformer
from dsjax.model import loss as losses
from tests import agreement
from tests.agreement import TINY, batch_arrays, draw
from tests.model.test_transformer import looped


class Alternating(ModelConfig):
    """A mixture, a dense layer, two mixtures."""

    @property
    def stacks(self):
        return Stack("moe", 1, True), Stack("dense", 1, False), Stack("late", 2, True)


CFG = Alternating(**{f.name: getattr(TINY, f.name) for f in dataclasses.fields(TINY)})
CFG = dataclasses.replace(CFG, layers=4, dense_layers=1, mtp_depth=1)
TOKENS, SEGMENTS, WEIGHTS = map(jnp.asarray, batch_arrays(2, 9, TINY.vocab, 1))


def test_stacks_in_another_order_run_as_the_loop_over_their_layers():
    p = draw(transformer.specs(CFG), 0)
    tokens, segments = TOKENS[:, :9], SEGMENTS[:, :9]
    found = jax.jit(lambda p: transformer.hidden(p, tokens, segments, CFG, single()))(p)
    x, loads = jax.jit(lambda p: looped(p, tokens, segments, CFG, single()))(p)
    np.testing.assert_allclose(found.x, x, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found.stats.loads, loads)
    assert loads.shape[0] == CFG.moe_layers == 3


def test_every_stack_learns_and_its_loads_lie_in_the_order_of_the_layers():
    p = draw(transformer.specs(CFG), 0)
    batch = losses.Batch(TOKENS, SEGMENTS, WEIGHTS)
    objective = losses.Objective(losses.count(batch), 0.3, LossConfig())

    def f(p):
        return losses.loss(p, batch, objective, CFG, single())

    (_, parts), gradient = jax.jit(jax.value_and_grad(f, has_aux=True))(p)
    assert parts.loads.shape == (3 + 1, CFG.moe.experts)
    assert [*gradient.stacks] == ["moe", "dense", "late"]
    for stack in gradient.stacks.values():
        assert np.any(stack.attn.w_o != 0, axis=(1, 2, 3)).all()


def test_new_tokens_against_the_cache_of_every_stack_see_what_whole_rows_see():
    p = draw(transformer.specs(CFG), 0)
    tokens, at = TOKENS[:1, :5], jnp.arange(5)[None]
    whole = transformer.hidden(p, tokens, jnp.ones_like(tokens), CFG, single()).x
    cache = transformer.empty_cache(CFG, 1, 5, single())
    x, cache = transformer.hidden_cached(p, tokens, at, cache, CFG, single())
    np.testing.assert_allclose(x, whole, rtol=1e-4, atol=1e-4)
    assert [*cache.stacks] == ["moe", "dense", "late"]


def test_a_layer_is_found_in_its_stack():
    found = [CFG.stack_of(layer) for layer in range(CFG.layers)]
    assert [(stack.name, at) for stack, at in found] == [
        ("moe", 0), ("dense", 0), ("late", 0), ("late", 1)]


def test_leaves_have_the_names_and_the_order_that_stored_runs_have():
    names = [name for name, _ in params.paths(transformer.specs(TINY))]
    owners = list(dict.fromkeys(name.split(".")[0] for name in names))
    assert owners == ["embed", "dense", "moe", "norm", "head", "mtp"]
    assert {"dense.attn.w_dq", "dense.ffn.w_gate_up", "moe.ffn.router.bias",
            "mtp.block.ffn.experts.w_down"} <= {*names}
    p = jax.eval_shape(lambda: transformer.init(TINY, jax.random.key(0)))
    assert p.moe is p.stacks["moe"]
    assert jax.tree.structure(jax.tree.map(lambda a: a, p)) == jax.tree.structure(p)


def test_every_parameter_says_what_it_is_for():
    for cfg in (CFG, TINY, dataclasses.replace(TINY, attention=agreement.MHA)):
        roles = {spec.role for spec in params.leaves(transformer.specs(cfg))}
        assert "" not in roles
        assert roles >= {"embedding", "head", "norm", "attention", "router", "expert"}
    assert count.count(CFG).params_total == params.size(
        dataclasses.replace(transformer.specs(CFG), mtp=None))
