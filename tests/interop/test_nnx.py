"""A parameter tree as an nnx module is the same function, trains under nnx, and comes back."""

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

from dsjax.interop import nnx as seam
from dsjax.model import transformer
from tests.train.crew import MIXTURE as MODEL


@pytest.fixture(scope="module")
def params():
    return transformer.init(MODEL, jax.random.key(0))


@pytest.fixture(scope="module")
def tokens():
    return jax.random.randint(jax.random.key(1), (2, 5), 0, MODEL.vocab)


def cross_entropy(logits, tokens):
    return optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:]).mean()


def test_the_module_is_the_same_function_and_gives_its_tree_back(params, tokens):
    model = seam.Model(params, MODEL)
    assert jnp.array_equal(model(tokens), transformer.logits(params, tokens, MODEL))
    jax.tree.map(lambda a, b: None if a is b else pytest.fail("a leaf changed"),
                 seam.to_params(model), params)


def test_it_trains_under_nnx_as_the_plain_tree_trains_under_optax(params, tokens):
    model = seam.Model(params, MODEL)
    optimizer = nnx.Optimizer(model, optax.sgd(0.5), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        loss, grads = nnx.value_and_grad(lambda m: cross_entropy(m(tokens), tokens))(model)
        optimizer.update(model, grads)
        return loss

    losses = [float(step(model, optimizer)) for _ in range(3)]
    assert losses[2] < losses[0]

    plain = params
    plain_step = jax.jit(jax.value_and_grad(
        lambda p: cross_entropy(transformer.logits(p, tokens, MODEL), tokens)))
    for expected in losses:
        loss, grads = plain_step(plain)
        assert float(loss) == pytest.approx(expected, rel=1e-5)  # float32, other fusions
        plain = jax.tree.map(lambda p, g: p - 0.5 * g, plain, grads)
    trained = seam.to_params(model)
    assert jnp.array_equal(trained.moe.ffn.router.bias, params.moe.ffn.router.bias)


def test_a_tree_is_written_back_into_the_module(params, tokens):
    model = seam.Model(params, MODEL)
    doubled = jax.tree.map(lambda a: 2 * a, params)
    seam.update(model, doubled)
    assert jnp.array_equal(model(tokens), transformer.logits(doubled, tokens, MODEL))
