"""The optimizer is the formula of its docstring: masked, sharded, with moments in low precision."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dsjax.optim.adamw import adamw, global_norm

SHAPES = {"w": (5, 7), "gain": (7,), "bias": (3,)}
DECAYED = {"w": True, "gain": False, "bias": False}
FREE = {"w": True, "gain": True, "bias": False}
F32 = np.float32


def _tree(seed, scale=1.0):
    keys = jax.random.split(jax.random.key(seed), len(SHAPES))
    return {n: scale * jax.random.normal(k, s) for k, (n, s) in zip(keys, SHAPES.items())}


def _numpy_update(p, g, m, v, t, *, rate, norm, decay, b1=0.9, b2=0.95, eps=1e-8, clip=1.0):
    """The four lines of the module docstring, one scalar after another, in float64."""
    out = [np.zeros_like(a) for a in (p, m, v)]
    for i in np.ndindex(p.shape):
        gi = g[i] * min(1.0, clip / norm)
        mi = b1 * m[i] + (1 - b1) * gi
        vi = b2 * v[i] + (1 - b2) * gi * gi
        direction = (mi / (1 - b1**t)) / ((vi / (1 - b2**t)) ** 0.5 + eps)
        out[0][i] = p[i] - rate * (direction + decay * p[i])
        out[1][i], out[2][i] = mi, vi
    return out


@pytest.mark.parametrize("size", [0.01, 3.0])  # below the clip, and above it
def test_five_updates_are_the_formula_written_in_numpy(size):
    params = _tree(0)
    tx = adamw(decay_mask=DECAYED, trainable=FREE, moment_dtype=jnp.float32)
    state, step = tx.init(params), jax.jit(tx.update)
    want = {n: np.asarray(a, np.float64) for n, a in params.items()}
    m, v = ({n: np.zeros(s) for n, s in SHAPES.items()} for _ in range(2))
    for t in range(1, 6):
        grads, rate = _tree(t, size), 0.01 * t
        g = {n: np.asarray(a, np.float64) for n, a in grads.items()}
        norm = np.sqrt((g["w"] ** 2).sum() + (g["gain"] ** 2).sum())
        for n in ("w", "gain"):
            want[n], m[n], v[n] = _numpy_update(
                want[n], g[n], m[n], v[n], t, rate=rate, norm=norm, decay=0.1 if n == "w" else 0
            )
        changes, state = step(grads, state, params, learning_rate=rate)
        params = optax.apply_updates(params, changes)
    # A parameter of size 1 to 4 is rounded to float32 five times: at most 5 * 2^-23 of 4.
    for n in SHAPES:
        np.testing.assert_allclose(params[n], want[n], atol=5 * 4 * 2.0**-23, rtol=0)


def test_float32_moments_give_what_optax_gives():
    params = _tree(0)
    ours = adamw(0.02, decay_mask=DECAYED, moment_dtype=jnp.float32)
    theirs = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(0.02, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1, mask=DECAYED),
    )
    mine, other = params, params
    a, b = ours.init(mine), theirs.init(other)
    for t in range(20):
        u, a = jax.jit(ours.update)(_tree(t + 1), a, mine)
        with jax.numpy_dtype_promotion("standard"):  # optax counts in int32 and multiplies
            w, b = jax.jit(theirs.update)(_tree(t + 1), b, other)
        mine, other = optax.apply_updates(mine, u), optax.apply_updates(other, w)
    # Both round parameters below 4 twenty times; optax's 1 - b2^t costs 20 ulp of small changes.
    for n in SHAPES:
        np.testing.assert_allclose(mine[n], other[n], atol=40 * 4 * 2.0**-24, rtol=0)


def test_bfloat16_moments_are_rounded_when_stored_and_not_before_use():
    params, grads = _tree(0), _tree(1)
    low = adamw(0.1, decay_mask=DECAYED)
    high = adamw(0.1, decay_mask=DECAYED, moment_dtype=jnp.float32)
    u, state = low.update(grads, low.init(params), params)
    w, exact = high.update(grads, high.init(params), params)
    for n in SHAPES:
        np.testing.assert_array_equal(u[n], w[n])  # the first update has nothing rounded behind it
        for stored, full in ((state.mu[n], exact.mu[n]), (state.nu[n], exact.nu[n])):
            assert stored.dtype == jnp.bfloat16
            np.testing.assert_array_equal(stored, full.astype(jnp.bfloat16))


def test_bfloat16_moments_stay_within_their_rounding_of_float32_moments():
    params, mask = {"w": jnp.zeros((13, 17))}, {"w": False}
    pair = [adamw(1.0, decay_mask=mask, moment_dtype=d) for d in (jnp.bfloat16, jnp.float32)]
    steps = [jax.jit(tx.update) for tx in pair]
    states = [tx.init(params) for tx in pair]
    unit = 2.0**-8  # half a step of 8 significant bits, as a share of the number
    off_m = off_v = 0.0  # how far a stored moment can be off: old errors shrink, each store adds
    for t in range(1, 41):
        grads, changes = {"w": jax.random.normal(jax.random.key(t), (13, 17))}, []
        for i in range(2):
            u, states[i] = steps[i](grads, states[i], params)
            changes.append(np.asarray(u["w"], np.float64))
        m, v = (np.asarray(x["w"], np.float64) for x in states[1][1:])
        off_m, off_v = 0.9 * off_m, 0.95 * off_v
        low = np.sqrt(v - off_v)
        factor = (1 - 0.95**t) ** 0.5 / (1 - 0.9**t)
        bound = factor * (off_m / low + np.abs(m) * (1 / low - 1 / np.sqrt(v)))
        assert (np.abs(changes[0] - changes[1]) <= bound + 1e-5).all()  # 1e-5: float32 itself
        off_m, off_v = off_m + unit * (np.abs(m) + off_m), off_v + unit * (v + off_v)
    assert np.abs(changes[0] - changes[1]).max() > 1e-3  # bfloat16 was really used


def test_a_leaf_that_is_not_trainable_never_moves_and_holds_nothing():
    params = _tree(0)
    tx = adamw(1.0, decay_mask=dict.fromkeys(SHAPES, True), trainable=FREE)
    state = tx.init(params)
    assert state.mu["bias"] is None
    assert state.nu["bias"] is None
    grads = _tree(1) | {"bias": jnp.full((3,), jnp.nan)}
    changes, state = tx.update(grads, state, params)
    np.testing.assert_array_equal(changes["bias"], np.zeros(3))
    assert all(np.isfinite(changes[n]).all() for n in SHAPES)
    assert state.mu["bias"] is None


def test_the_norm_is_over_all_trainable_leaves_together_and_the_clip_keeps_the_direction():
    grads = {"w": jnp.full((5, 7), 2.0), "gain": jnp.full((7,), -2.0), "bias": jnp.full((3,), 9.0)}
    assert float(global_norm(grads, FREE)) == pytest.approx(2.0 * 42**0.5, rel=1e-6)
    params = jax.tree.map(jnp.zeros_like, grads)
    tx = adamw(1.0, decay_mask=DECAYED, trainable=FREE, moment_dtype=jnp.float32)
    _, state = tx.update(grads, tx.init(params), params)
    np.testing.assert_allclose(state.mu["w"], 0.1 / 42**0.5, rtol=1e-6)
    np.testing.assert_allclose(state.mu["gain"], -0.1 / 42**0.5, rtol=1e-6)


def test_decay_pulls_only_the_masked_leaves_towards_zero():
    params = jax.tree.map(jnp.ones_like, _tree(0))
    tx = adamw(0.5, decay_mask=DECAYED)
    zeros = jax.tree.map(jnp.zeros_like, params)
    changes, _ = tx.update(zeros, tx.init(params), params)
    np.testing.assert_allclose(changes["w"], -0.05, rtol=1e-6)
    np.testing.assert_array_equal(changes["gain"], np.zeros(7))


def test_a_rate_schedule_sees_the_number_of_updates_done_and_the_update_may_override_it():
    params = {"w": jnp.zeros(3)}
    grads = {"w": jnp.ones(3)}
    tx = adamw(
        lambda done: 1.0 + done.astype(jnp.float32),
        decay_mask={"w": False},
        moment_dtype=jnp.float32,
    )
    state, sizes = tx.init(params), []
    for _ in range(3):
        changes, state = jax.jit(tx.update)(grads, state, params)
        sizes.append(-float(changes["w"][0]))  # a constant gradient makes m / sqrt(v) one
    np.testing.assert_allclose(sizes, [1, 2, 3], rtol=1e-5)
    changes, _ = tx.update(grads, state, params, learning_rate=7.0)
    np.testing.assert_allclose(changes["w"], -7.0, rtol=1e-5)


def test_sharded_leaves_give_the_same_update_and_stay_sharded():
    devices = np.array(jax.devices())
    mesh = jax.sharding.Mesh(devices, ("data",))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    params = {"w": jax.random.normal(jax.random.key(0), (len(devices) * 2, 3))}
    grads = {"w": jax.random.normal(jax.random.key(1), (len(devices) * 2, 3))}
    tx = adamw(0.1, decay_mask={"w": True})
    want, _ = jax.jit(tx.update)(grads, tx.init(params), params)
    spread, g = jax.device_put((params, grads), split)
    state = jax.jit(tx.init)(spread)
    changes, state = jax.jit(tx.update)(g, jax.device_put(state, _like(state, split)), spread)
    assert changes["w"].sharding.is_equivalent_to(split, 2)
    assert state.mu["w"].sharding.is_equivalent_to(split, 2)
    # The norm is summed in another order: 1 ulp of it, and the update is a ratio of such numbers.
    np.testing.assert_allclose(changes["w"], want["w"], rtol=4 * 2.0**-23)


def _like(state, split):
    whole = jax.sharding.NamedSharding(split.mesh, jax.sharding.PartitionSpec())
    return jax.tree.map(lambda a: split if a.ndim else whole, state)


def test_the_state_survives_an_orbax_checkpoint(tmp_path):
    from orbax.checkpoint import v1 as ocp

    params = _tree(0)
    tx = adamw(0.1, decay_mask=DECAYED, trainable=FREE)
    _, state = tx.update(_tree(1), tx.init(params), params)
    ocp.save(tmp_path / "state", state)
    loaded = ocp.load(tmp_path / "state", state)
    assert jax.tree.structure(loaded) == jax.tree.structure(state)
    for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(state)):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("change", "word"),
    [({"b2": 1.0}, "b2=1.0"), ({"clip": 0.0}, "clip=0.0"), ({"eps": 0.0}, "eps=0.0")],
)
def test_hyperparameters_without_meaning_are_refused_in_a_sentence(change, word):
    with pytest.raises(ValueError, match=word):
        adamw(0.1, decay_mask=DECAYED, **change)


def test_a_mask_of_another_tree_and_a_missing_rate_are_refused():
    params = _tree(0)
    with pytest.raises(ValueError, match="same tree of specs"):
        adamw(0.1, decay_mask={"w": True}).init(params)
    tx = adamw(decay_mask=DECAYED)
    with pytest.raises(ValueError, match="no learning rate"):
        tx.update(params, tx.init(params), params)
