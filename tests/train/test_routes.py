"""Experts that are given with the rows are taken on every layout, layer by layer, also by the
stages of a pipeline, whose layers lie in another order.
"""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from dsjax.cli.benches import equal_layouts
from dsjax.config.parallel import ParallelConfig
from dsjax.runtime import backend as backends
from dsjax.train import sharding

MODEL = dataclasses.replace(equal_layouts.MODEL, layers=4, mtp_depth=0)
LAYERS, EXPERTS, EACH = 3, 16, 3
RUN = dataclasses.replace(equal_layouts.RUN, model=MODEL)


@functools.cache
def rows():
    """Packed rows whose tokens take drawn experts, others in every layer."""
    rng = np.random.default_rng(5)
    drawn = rng.random((equal_layouts.ROWS, LAYERS, equal_layouts.LENGTH + 1, EXPERTS))
    return equal_layouts.rows_of("packed") | {
        "routes": np.argsort(drawn, axis=-1)[..., :EACH].astype(np.int32)}


@functools.cache
def stepped(layout, microbatches, has_routes=True):
    """Loss, loads and gradient; the first moment is the gradient, as beta1 is 0."""
    run = equal_layouts.configured(layout, microbatches, RUN)
    mesh = sharding.open_mesh(run)
    take = sharding.compile_step(run, backends.for_run(run, mesh), mesh)
    where = None if mesh is None else sharding.state_shardings(run, mesh)
    given = {name: a for name, a in rows().items() if has_routes or name != "routes"}
    state, m = take(jax.device_put(equal_layouts.start(MODEL), where),
                    sharding.put_rows(given, mesh))
    return jax.device_get((m.loss, m.loads, state.opt.mu))


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "microbatches"), [
    (ParallelConfig(data=2, fsdp=2, expert=2), 2),
    pytest.param(ParallelConfig(pipe=2, schedule="dualpipe-v", expert=2), 4,
                 marks=pytest.mark.exhaustive),
    pytest.param(ParallelConfig(pipe=2, schedule="dualpipe", data=2), 4,
                 marks=pytest.mark.exhaustive),
], ids=str)
def test_the_step_is_that_of_one_device(layout, microbatches):
    wanted_loss, wanted_loads, wanted = stepped(ParallelConfig(), 1)
    loss, loads, grads = stepped(layout, microbatches)
    assert loss == pytest.approx(wanted_loss, rel=equal_layouts.TOLERANCE)
    np.testing.assert_array_equal(loads, wanted_loads)

    def one(a, b):
        np.testing.assert_allclose(a, b, rtol=0, atol=equal_layouts.TOLERANCE * np.abs(b).max())

    jax.tree.map(one, grads, wanted)


def test_loads_are_of_the_experts_that_were_given():
    batch = rows()
    is_real = batch["segments"][:, :-1] != 0
    _, loads, _ = stepped(ParallelConfig(), 1)
    for layer in range(LAYERS):
        taken = batch["routes"][:, layer, :-1][is_real]
        np.testing.assert_array_equal(loads[layer], np.bincount(taken.ravel(), minlength=EXPERTS))
