"""Rematerialization changes what is kept for the backward pass and not one gradient."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsjax.config.loss import LossConfig
from dsjax.layers.backend import single
from dsjax.layers.remat import policy
from dsjax.model import loss as losses
from dsjax.model import transformer
from tests.agreement import TINY, batch_arrays, close, compiled, double, draw

B, T = 2, 13
# Sizes that no two quantities share, so that a shape names its quantity.
CFG = dataclasses.replace(TINY, mtp_depth=0, d_model=46, dense_dim=17,
                          moe=dataclasses.replace(TINY.moe, expert_dim=19))
TOKENS, SEGMENTS, _ = batch_arrays(B, T - 1, TINY.vocab, 1)
ROWS = 16  # of an expert: 52 assignments / 6 experts * 1.125, in eights


def kept(remat):
    """Shapes, less the layer axis, of what the backward pass of the layers keeps of activations."""
    p = jax.eval_shape(lambda: draw(transformer.specs(CFG), 0))

    def residuals(p):
        def f(p):
            backend = dataclasses.replace(single(), remat=policy(remat))
            tokens, segments = jnp.asarray(TOKENS), jnp.asarray(SEGMENTS)
            return transformer.hidden(p, tokens, segments, CFG, backend).x
        return jax.vjp(f, p)[1]

    arrays = [a for a in jax.tree.leaves(jax.eval_shape(residuals, p)) if a.ndim > 2]
    parameters = {a.shape for a in jax.tree.leaves(p)}
    return {a.shape[1:] for a in arrays if a.shape not in parameters and a.dtype == jnp.float32}


NORMS = {(B * T, 6), (B * T, 8)}  # as the products' inputs: query, latent
EXPERT_INPUT = {(B * T, 46)}  # held before it is dispatched
EXPANDED = {(B, 3, T, 9), (B, 3, T, 7)}  # q and k; v has the shape of the output, which is kept
SWIGLU_OUTPUTS = {(B * T, 17), (B * T, 19), (B, T, 17), (B, T, 19)}
LATENTS = {(B, T, 6), (B, T, 12)}
SWIGLU_INPUTS = {(B, T, 34), (B, T, 38), (6, ROWS, 38)}


def test_v3_keeps_latents_and_swiglu_inputs_and_makes_norms_and_expansions_again():
    shapes = kept("v3")
    assert shapes >= LATENTS | SWIGLU_INPUTS | EXPERT_INPUT | {(B, T, 46), (B, 3, T, 7)}
    assert not shapes & (NORMS | SWIGLU_OUTPUTS | {(B, 3, T, 9)})
    everything = kept("none")  # the same eyes see them where nothing is made again
    assert everything >= NORMS | EXPANDED | {(B * T, 17), (B * T, 19)}


def test_full_keeps_the_input_of_each_layer_only():
    shapes = {s for s in kept("full") if len(s) > 2}
    assert shapes == {(B, T, 46)}


@functools.cache
def gradients(remat):
    cfg = dataclasses.replace(TINY, layers=1, dense_layers=0, mtp_depth=0)
    arrays = batch_arrays(2, 9, TINY.vocab, 1)
    with jax.enable_x64(True):
        batch = losses.Batch(*map(jnp.asarray, arrays))

        def f(p):
            objective = losses.Objective(losses.count(batch), 0.3, LossConfig(balance=0.1))
            backend = dataclasses.replace(double(), remat=policy(remat))
            return losses.loss(p, batch, objective, cfg, backend)[0]

        result = compiled(jax.value_and_grad(f))(draw(transformer.specs(cfg), 0))
        return jax.tree.map(np.asarray, result)


@pytest.mark.parametrize("remat", [
    "v3", pytest.param("full", marks=pytest.mark.exhaustive)])
def test_loss_and_gradients_are_those_without_rematerialization(remat):
    jax.tree.map(lambda a, b: close(a, b, 1e-12), gradients(remat), gradients("none"))


def test_an_unknown_policy_is_refused():
    with pytest.raises(ValueError, match="choose none, v3 or full"):
        policy("most")
