"""A state is born as leaves with a buffer each, so that a training step may take it donated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsjax.config.parallel import ParallelConfig
from dsjax.layers.backend import single
from dsjax.model import transformer
from dsjax.model.loss import Batch
from dsjax.optim.ema import HostEMA
from dsjax.train import sharding
from dsjax.train import state as states
from dsjax.train import step as steps
from tests.train import crew
from tests.train.small_run import small_run


def shared(tree) -> list[list[str]]:
    """Names of leaves that lie in one buffer."""
    places: dict[int, list[str]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        places.setdefault(leaf.unsafe_buffer_pointer(), []).append(jax.tree_util.keystr(path))
    return [names for names in places.values() if len(names) > 1]


@pytest.mark.parametrize("begin", ["eager", "jitted", "from parameters"])
def test_no_two_leaves_share_a_buffer(begin, tmp_path):
    run = small_run(tmp_path, tmp_path / "words.txt")
    key = jax.random.key(0)
    state = {"eager": lambda: states.init(run, key),
             "jitted": lambda: sharding.init(run, None),
             "from parameters": lambda: sharding.begin(run, transformer.init(run.model, key), None),
             }[begin]()
    assert shared(state) == []
    average = HostEMA(state.params, 0.9)
    assert shared((state, average.arrays())) == []
    average.close()


def test_a_state_made_outside_jit_is_donated_to_a_real_step(tmp_path):
    run = crew.run_on(tmp_path, "run", ParallelConfig(), 3, crew.DENSE)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 300, (2, 9)), jnp.int32)
    batch = Batch(tokens, jnp.ones_like(tokens), jnp.ones(tokens.shape, jnp.float32))
    take = jax.jit(steps.make_train_step(run, single()), donate_argnums=0)
    first = states.init(run, jax.random.key(0))
    state, _ = take(first, batch)
    state, metrics = take(state, batch)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(first))
    assert int(state.step) == 2
    assert np.isfinite(metrics.loss)
