"""Over ranks a token's experts add up to the same bits, whatever the other tokens choose."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from dsjax.config.parallel import ParallelConfig
from dsjax.infer.engine.experts import on_ranks
from dsjax.numerics.precision import FP32
from dsjax.ops.expert_mlp import batched
from dsjax.ops.experts import experts_plain
from dsjax.parallel import mesh as meshes
from dsjax.parallel.mesh import AXES, EXPERTS

D, F, E, K, T = 6, 5, 16, 6, 40  # T tokens a rank
LAYOUTS = {
    "data 2 x expert 4": ParallelConfig(data=2, expert=4),
    "expert 8 over 2 nodes": ParallelConfig(expert=8, expert_nodes=2),
}


def program(layout):
    """x [R T, D], experts and weights [R T, K] -> [R T, D], over the ranks of a layout."""
    mesh = meshes.make_mesh(layout)
    rows, shared = PartitionSpec(AXES), PartitionSpec(EXPERTS)

    def here(x, experts, weights, w_gate_up, w_down):
        return on_ranks(x, experts, weights, w_gate_up, w_down, batched(FP32), layout=layout)[0]

    return jax.jit(jax.shard_map(here, mesh=mesh, in_specs=(rows, rows, rows, shared, shared),
                                 out_specs=rows, check_vma=False))


@functools.cache
def matrices():
    rng = np.random.default_rng(0)
    return (jnp.asarray(rng.standard_normal((E, D, 2, F)) / D**0.5, jnp.float32),
            jnp.asarray(rng.standard_normal((E, F, D)) / F**0.5, jnp.float32))


def tokens(rng, count, favored=()):
    """Tokens, their choices and weights; favored experts are among every choice."""
    rest = [e for e in range(E) if e not in favored]
    chosen = [rng.permutation([*favored, *rng.permutation(rest)[: K - len(favored)]])
              for _ in range(count)]
    return (rng.standard_normal((count, D)), np.array(chosen), rng.uniform(0.2, 1, (count, K)))


@pytest.mark.parametrize("name", list(LAYOUTS))
def test_a_tokens_sum_is_the_plain_one_and_has_one_form(name):
    """Others are spread evenly, or all ask one device first, where little room would be left."""
    run = program(LAYOUTS[name])
    mine = tokens(np.random.default_rng(1), 12)
    found = []
    for seed, favored in enumerate([(), (0, 1, 2, 3), (0, 1, 2, 3, 4, 5), (3, 5, 11)]):
        others = tokens(np.random.default_rng(2 + seed), 8 * T - 12, favored)
        x, experts, weights = (np.concatenate(pair) for pair in zip(others, mine))
        asked = (jnp.asarray(x, jnp.float32), jnp.asarray(experts, jnp.int32),
                 jnp.asarray(weights, jnp.float32))
        y = np.asarray(run(*asked, *matrices()))
        np.testing.assert_allclose(y, experts_plain(*asked, *matrices()), atol=2e-5)
        found.append(y[-12:])
    for other in found[1:]:
        assert other.tobytes() == found[0].tobytes()


def test_the_order_of_a_choice_does_not_matter():
    run = program(LAYOUTS["data 2 x expert 4"])
    x, experts, weights = tokens(np.random.default_rng(3), 8 * T)
    found = [np.asarray(run(jnp.asarray(x, jnp.float32), jnp.asarray(experts[:, order], jnp.int32),
                            jnp.asarray(weights[:, order], jnp.float32), *matrices()))
             for order in (list(range(K)), list(range(K))[::-1])]
    assert found[0].tobytes() == found[1].tobytes()
