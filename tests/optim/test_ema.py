"""The host's average equals its definition step by step, though the step never waits for it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsjax.optim.ema import HostEMA

KEEP, TAKE = np.float32(0.9), np.float32(1 - 0.9)


def _params(seed=0):
    k1, k2 = jax.random.split(jax.random.key(seed))
    return {"w": jax.random.normal(k1, (5, 7)), "norm": [jax.random.normal(k2, (3,))]}


@jax.jit
def _train(params, step):
    return jax.tree.map(lambda p: p * 0.9 + jnp.sin(step * 1.7 + p), params)


_donated = jax.jit(_train, donate_argnums=0)


def _sequence(start, steps):
    """Parameters after each step, computed without donation and copied."""
    params, seen = start, []
    for step in range(1, steps + 1):
        params = _train(params, jnp.float32(step))
        seen.append(jax.tree.map(lambda p: np.array(p, copy=True), params))
    return seen


def _define(average, sequence):
    """The definition, one step after another, in float32."""
    for params in sequence:
        average = jax.tree.map(lambda a, p: KEEP * a + TAKE * p, average, params)
    return average


def _equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_it_is_the_sequential_definition_to_the_bit_though_each_buffer_is_donated():
    start = _params()
    want = _define(jax.tree.map(np.asarray, start), _sequence(start, 30))
    ema, params = HostEMA(start, 0.9), start
    for step in range(1, 31):
        params = _donated(params, jnp.float32(step))  # overwrites what the last update was given
        assert ema.update(params, step)
    _equal(ema.arrays(), want)
    ema.close()


def test_every_third_step_is_the_definition_on_every_third_step_with_the_decay_cubed():
    start = _params()
    seen = _sequence(start, 10)
    ema = HostEMA(start, 0.9, every=3)
    taken = [ema.update(p, i + 1) for i, p in enumerate(map(_on_device, seen))]
    assert taken == [False, False, True] * 3 + [False]
    want = jax.tree.map(np.asarray, start)
    for params in seen[2::3]:
        keep, take = np.float32(0.9**3), np.float32(1 - 0.9**3)
        want = jax.tree.map(lambda a, p, k=keep, t=take: k * a + t * p, want, params)
    _equal(ema.arrays(), want)
    ema.close()


def test_a_run_resumed_from_the_stored_average_ends_in_the_same_bits():
    start = _params()
    seen = list(map(_on_device, _sequence(start, 12)))
    whole, first = HostEMA(start, 0.9, every=2), HostEMA(start, 0.9, every=2)
    for step, params in enumerate(seen, 1):
        whole.update(params, step)
    for step, params in enumerate(seen[:5], 1):
        first.update(params, step)
    second = HostEMA(seen[4], 0.9, every=2, start=first.arrays())
    for step, params in enumerate(seen[5:], 6):
        second.update(params, step)
    _equal(second.arrays(), whole.arrays())
    for ema in (whole, first, second):
        ema.close()


def test_an_update_returns_before_the_parameters_exist():
    slow = jax.jit(lambda x: jax.lax.fori_loop(0, 200, lambda _, y: jnp.tanh(y @ y), x))
    x = jnp.full((512, 512), 0.01)
    ema = HostEMA(x, 0.9)
    ema.update(x, 1)  # compiles the copy
    slow(x).block_until_ready()
    ema.wait()
    later = slow(x)
    ema.update(later, 2)
    assert not later.is_ready()
    want = KEEP * (KEEP * np.asarray(x) + TAKE * np.asarray(x)) + TAKE * np.asarray(later)
    np.testing.assert_array_equal(ema.arrays(), want)
    ema.close()


def test_arrays_are_a_copy_that_later_updates_leave_alone():
    start = _params()
    ema = HostEMA(start, 0.9)
    held = ema.arrays()
    ema.update(_params(1), 1)
    ema.wait()
    _equal(held, start)
    assert not np.array_equal(ema.arrays()["w"], held["w"])
    ema.close()


def test_sharded_and_replicated_leaves_average_as_whole_ones_do():
    devices = np.array(jax.devices())
    mesh = jax.sharding.Mesh(devices, ("data",))
    split, whole = (
        jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
        for axes in (["data"], [])
    )
    tree = {"split": jnp.arange(6.0 * len(devices)).reshape(-1, 3), "same": jnp.arange(5.0)}
    shardings = {"split": split, "same": whole}
    ema = HostEMA(jax.device_put(tree, shardings), 0.9)
    after = jax.tree.map(lambda p: p + 1, tree)
    ema.update(jax.device_put(after, shardings), 1)
    want = jax.tree.map(lambda a, p: KEEP * np.asarray(a) + TAKE * np.asarray(p), tree, after)
    _equal(ema.arrays(), want)
    assert ema.arrays()["split"].sharding == split
    again = HostEMA(jax.device_put(tree, shardings), 0.9, start=ema.arrays())
    _equal(again.arrays(), want)
    ema.close()
    again.close()


def test_what_fails_in_the_thread_is_raised_at_the_next_call():
    ema = HostEMA(_params(), 0.9)
    ema._blocks[0][0][1].flags.writeable = False
    ema.update(_params(1), 1)
    with pytest.raises(ValueError, match="read-only"):
        ema.update(_params(2), 2)
    ema.close()


def test_an_average_of_another_model_is_refused():
    with pytest.raises(ValueError, match=r"shape \(2,\) where the model has \(3,\)"):
        HostEMA(jnp.zeros(3), 0.9, start=np.zeros(2))
    with pytest.raises(ValueError, match="decay=1"):
        HostEMA(jnp.zeros(3), 1.0)


def _on_device(tree):
    return jax.tree.map(jnp.asarray, tree)
