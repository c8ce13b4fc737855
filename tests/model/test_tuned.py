"""A part that learns stands in the model as what it is merged to; its gradient is the whole's part.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsjax import params
from dsjax.config.run import RunConfig, TrainConfig
from dsjax.config.sft import ExpertsConfig, LoRAConfig
from dsjax.errors import UserError
from dsjax.model import transformer, tuned
from dsjax.model.loss import Batch
from dsjax.train import state, step
from dsjax.train.tuning import partial
from tests import agreement

EVERY = ("attention", "ffn", "shared_expert", "expert")
MODEL = dataclasses.replace(agreement.TINY, mtp_depth=0)
LORA = RunConfig("tuned", MODEL, TrainConfig(batch_size=3, seq_len=8), init_from="base",
                 lora=LoRAConfig(rank=2, alpha=3.0, targets=EVERY))
ESFT = dataclasses.replace(LORA, lora=None, experts=ExpertsConfig(chosen="1:0,4 2:2,3,5"))


def batch():
    return Batch(*map(jnp.asarray, agreement.batch_arrays(3, 8, MODEL.vocab, 4)))


@functools.cache
def backend():
    return agreement.double()


@functools.cache
def whole():
    """The gradients of the whole model, compiled once."""
    return jax.jit(step.gradients, static_argnums=(3, 4))


def merged(run, learnt, frozen):
    """The model that a part is merged to, matrix by matrix."""
    named = dict(params.paths(frozen))
    for name, spec in params.paths(transformer.specs(run.model)):
        if name not in learnt:
            continue
        if run.lora is not None:
            a, b = learnt[name].a, learnt[name].b
            lead, split = spec.batch_dims, spec.batch_dims + spec.contract_dims
            k = int(np.prod(spec.shape[lead:split]))
            added = a.reshape(*a.shape[:lead], k, -1) @ b.reshape(*b.shape[: lead + 1], -1)
            named[name] = named[name] + run.lora.scale * added.reshape(spec.shape)
        else:
            for layer, of in enumerate(run.experts.by_layer.values()):
                for at, expert in enumerate(of):
                    named[name] = named[name].at[layer, expert].set(learnt[name][layer, at])
    return jax.tree.unflatten(jax.tree.structure(frozen), list(named.values()))


def drawn(run, seed):
    """Frozen weights and a part that learns, with no zeros in it."""
    frozen = agreement.draw(transformer.specs(run.model), seed)
    learnt = agreement.draw(tuned.specs(run), seed + 1)
    return frozen, jax.tree.map(lambda a: a + 0.1, learnt)


@pytest.mark.parametrize("run", [LORA, ESFT], ids=["lora", "experts"])
def test_it_computes_what_the_merged_model_does(run):
    with jax.enable_x64(True):
        frozen, learnt = drawn(run, 5)
        rows = batch()
        objective = step.objective_of(run, rows, jnp.zeros((), jnp.int32))
        grads, total, _ = jax.jit(partial.gradients, static_argnums=(3, 4))(
            learnt, rows, objective, run, backend(), frozen=frozen)
        wanted, whole_total, _ = whole()(
            merged(run, learnt, frozen), rows, objective,
            dataclasses.replace(run, lora=None, experts=None), backend())
        agreement.close(total, whole_total)
        by_name = dict(params.paths(wanted))
        for name, spec in params.paths(transformer.specs(run.model)):
            if name not in learnt:
                continue
            if run.experts is not None:
                for layer, of in enumerate(run.experts.by_layer.values()):
                    agreement.close(grads[name][layer, : len(of)], by_name[name][layer, list(of)])
                    assert not np.asarray(grads[name][layer, len(of) :]).any()
                continue
            lead, split = spec.batch_dims, spec.batch_dims + spec.contract_dims
            k = int(np.prod(spec.shape[lead:split]))
            a, b = learnt[name].a, learnt[name].b
            dw = by_name[name].reshape(*spec.shape[:lead], k, -1)
            da = dw @ b.reshape(*b.shape[: lead + 1], -1).swapaxes(-1, -2)
            db = a.reshape(*a.shape[:lead], k, -1).swapaxes(-1, -2) @ dw
            agreement.close(grads[name].a, run.lora.scale * da.reshape(a.shape))
            agreement.close(grads[name].b, run.lora.scale * db.reshape(b.shape))


def test_adapters_begin_as_none():
    """B is 0 and A such that A^T x has the size of x."""
    learnt = jax.jit(lambda key: tuned.init(LORA, key))(jax.random.key(1))
    assert not any(np.asarray(f.b).any() for f in learnt.values())
    sizes = {name: float(jnp.std(f.a)) * np.sqrt(np.prod(f.a.shape[1:-1]))
             for name, f in learnt.items() if not name.endswith(("w_gate_up", "w_down"))}
    assert all(0.5 < size < 1.6 for size in sizes.values()), sizes  # a few dozen normal numbers


def test_experts_begin_as_the_frozen_ones_are():
    frozen = transformer.init(ESFT.model, jax.random.key(0))
    learnt = tuned.copied(ESFT, frozen)
    for name, of in learnt.items():
        held = dict(params.paths(frozen))[name]
        np.testing.assert_array_equal(of[0, :2], held[0, [0, 4]])
        np.testing.assert_array_equal(of[1, :3], held[1, [2, 3, 5]])


def test_a_part_has_no_masters_or_moments_of_the_rest():
    held = state.abstract(LORA)
    count = sum(a.size for a in jax.tree.leaves(held.params))
    assert count == params.size(tuned.specs(LORA)) < params.size(transformer.specs(LORA.model))
    assert sum(a.size for a in jax.tree.leaves((held.opt.mu, held.opt.nu))) == 2 * count


@pytest.mark.parametrize(("fields", "said"), [
    ({"init_from": None}, "--lora trains a part.*--init-from"),
    ({"lora": LoRAConfig(targets=("attentoin",))},
     "attentoin is of no matrix, did you mean attention.*choose from"),
    ({"lora": None, "experts": ExpertsConfig(chosen="0:1")}, "layer 0, which has no.*1 to 2"),
    ({"lora": None, "experts": ExpertsConfig(chosen="1:6")}, "expert 6 of layer 1, which has 6"),
    ({"experts": ExpertsConfig()}, "--lora and --experts each freeze.*give one of them"),
], ids=range(5))
def test_a_part_that_is_none_is_refused(fields, said):
    with pytest.raises(UserError, match=said):
        tuned.check(dataclasses.replace(LORA, **fields))


