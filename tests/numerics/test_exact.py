"""Products of float32 operands ask for float32 in every program; tf32 and bf16 do not.

What it defends against: TF32 on a GPU and one pass of bfloat16 on a TPU, which XLA takes unless it
is told. A CPU multiplies float32 either way, so the programs are read.
"""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr

from dsjax.config.run import PrecisionConfig, RunConfig, TrainConfig
from dsjax.model import transformer
from dsjax.model.loss import from_rows
from dsjax.numerics import precision
from dsjax.runtime import backend as backends
from dsjax.train import sharding
from tests.agreement import TINY, draw

HIGHEST = (lax.Precision.HIGHEST, lax.Precision.HIGHEST)


def products(jaxpr: Jaxpr) -> Iterator[tuple[str, object]]:
    """Dtype of the first operand and the precision of every product in a program."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            yield str(eqn.invars[0].aval.dtype), eqn.params["precision"]
        for value in jax.tree.leaves(eqn.params, is_leaf=is_program):
            if isinstance(value, ClosedJaxpr):
                yield from products(value.jaxpr)
            elif isinstance(value, Jaxpr):
                yield from products(value)


def is_program(value: object) -> bool:
    return isinstance(value, ClosedJaxpr | Jaxpr)


def step_products(name: str) -> list[tuple[str, object]]:
    run = RunConfig("exact", dataclasses.replace(TINY, mtp_depth=1),
                    train=TrainConfig(batch_size=2, seq_len=8), precision=PrecisionConfig(name))
    rows = {key: jnp.ones((2, 9), dtype) for key, dtype in (
        ("tokens", jnp.int32), ("segments", jnp.int32), ("weights", jnp.float32))}
    step = sharding.compile_step(run, backends.for_run(run, None), None)
    traced = jax.make_jaxpr(step)(sharding.init(run, None), from_rows(rows))
    return list(products(traced.jaxpr))


def test_every_product_of_a_step_in_fp32_asks_for_float32():
    found = step_products("fp32")
    assert len(found) > 30
    assert {dtype for dtype, _ in found} == {"float32"}
    assert all(asked == HIGHEST for _, asked in found)


def test_tf32_leaves_linears_to_the_machine_and_nothing_else():
    exact = step_products("fp32")
    fast = step_products("tf32")
    asked = [one for _, one in fast]
    left = [one for one in asked if one != HIGHEST]
    assert len(asked) == len(exact)
    assert len(left) > len(asked) / 2
    assert any(one == HIGHEST for one in asked)  # scores, head and router


def test_narrow_operands_are_not_told():
    found = step_products("bf16")
    assert any(dtype == "bfloat16" for dtype, _ in found)
    assert all(asked is None for dtype, asked in found if dtype == "bfloat16")
    assert all(asked == HIGHEST for dtype, asked in found if dtype == "float32")


def test_decoding_in_fp32_asks_for_float32():
    p, backend = draw(transformer.specs(TINY), 0), backends.default_backend()
    cache = transformer.empty_cache(TINY, 2, 16, backend)
    tokens = jnp.ones((2, 1), jnp.int32)

    def read(p, cache):
        x, _ = transformer.hidden_cached(p, tokens, jnp.zeros_like(tokens), cache, TINY, backend)
        return transformer.head(p, x)

    found = list(products(jax.make_jaxpr(read)(p, cache).jaxpr))
    assert len(found) > 10
    assert all(asked == HIGHEST for _, asked in found)


@pytest.mark.parametrize("name", ["fp32", "tf32"])
def test_on_a_cpu_both_are_the_same_numbers(name, key):
    one = {"fp32": precision.FP32, "tf32": precision.TF32}[name]
    x, w = jax.random.normal(key, (5, 7)), jax.random.normal(key, (7, 3))
    assert jnp.array_equal(one.fprop(x, w), precision.FP32.fprop(x, w))
