"""AdamW as DeepSeek-V3 runs it: clipped, decoupled decay, both moments stored in bfloat16.

DeepSeek-V3 report, sec. 3.3.3 (optimizer states in low precision) and 4.2 (betas 0.9 and 0.95,
decay 0.1, clip 1.0). For the gradient g of a parameter p at update t, every product in float32:

    g <- g * min(1, clip / |all g|)
    m <- b1 m + (1 - b1) g             first moment,  kept in `moment_dtype`
    v <- b2 v + (1 - b2) g^2           second moment, kept in `moment_dtype`
    p <- p - rate (m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) + weight_decay p)

Moments are rounded when stored, after use. bfloat16 has 8 significant bits, so a change below 2^-9
of the stored number is lost. An update shortens v by (1 - b2) v at most: 0.05 v is well above, but
with b2 = 0.999 v could never fall, and float32 moments are needed.

All but the norm is elementwise, leaf by leaf, so a leaf keeps its sharding and XLA fuses it.
The report does not give eps (1e-8 here; DeepSeek-V4 states 1e-20).
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import DTypeLike

Tree = Any
Rate = float | Array | Callable[[Array], Array]


def adamw(
    learning_rate: Rate | None = None,
    *,
    decay_mask: Tree,
    trainable: Tree | None = None,
    b1: float = 0.9,
    b2: float = 0.95,
    eps: float = 1e-8,
    weight_decay: float = 0.1,
    clip: float | None = 1.0,
    moment_dtype: DTypeLike = jnp.bfloat16,
) -> optax.GradientTransformationExtraArgs:
    """Build the optimizer; `update(grads, state, params, learning_rate=r)` overrides the rate here.

    learning_rate: a number, a function of the count of updates done, or None (update names it).
    decay_mask: bools in the tree of the parameters, true where weight decay applies (matrices).
    trainable: such a tree, or None for all; a false leaf (router bias) gets an update of exactly
    zero, has no moments and stays out of the norm. The state is optax's ScaleByAdamState.
    """
    _check(b1, b2, eps, weight_decay, clip)

    def init(params: Tree) -> optax.ScaleByAdamState:
        _bools(decay_mask, params, "decay_mask")
        free = _bools(trainable, params, "trainable")
        mu, nu = (_moments(params, free, moment_dtype) for _ in range(2))
        return optax.ScaleByAdamState(jnp.zeros([], jnp.int32), mu, nu)

    def update(
        grads: Tree, state: optax.ScaleByAdamState, params: Tree | None = None, **extra: Any
    ) -> tuple[Tree, optax.ScaleByAdamState]:
        if params is None:
            raise ValueError("weight decay needs the parameters; call update(grads, state, params)")
        rate = _resolve(extra.get("learning_rate", learning_rate), state.count)
        scale, count = _clip_scale(grads, trainable, clip), state.count + 1

        def leaf(p: Array, g: Array, m: Array | None, v: Array, is_decayed: bool) -> tuple:
            if m is None:
                return jnp.zeros_like(p), None, None
            g = g.astype(jnp.float32) * scale
            direction, m, v = _adam(g, m, v, count, b1, b2, eps)
            if is_decayed:
                direction += weight_decay * p.astype(jnp.float32)
            return -rate * direction, m, v

        leaves, form = _flatten(params)
        others = [form.flatten_up_to(tree) for tree in (grads, state.mu, state.nu, decay_mask)]
        changes, mu, nu = map(form.unflatten, zip(*map(leaf, leaves, *others)))
        return changes, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformationExtraArgs(init, update)


def _adam(
    g: Array, m: Array, v: Array, count: Array, b1: float, b2: float, eps: float
) -> tuple[Array, Array, Array]:
    """Direction of one leaf at update `count`, and its moments in the dtypes they came in."""
    new_m = b1 * m.astype(jnp.float32) + (1 - b1) * g
    new_v = b2 * v.astype(jnp.float32) + (1 - b2) * g * g
    t = count.astype(jnp.float32)
    # 1 / (1 - b^t), so that an element costs one division
    rise_m, rise_v = (-1 / jnp.expm1(t * math.log(b)) if b else 1.0 for b in (b1, b2))
    direction = (new_m * rise_m) / (jnp.sqrt(new_v * rise_v) + eps)
    return direction, new_m.astype(m.dtype), new_v.astype(v.dtype)


def global_norm(grads: Tree, trainable: Tree | None = None) -> Array:
    """Euclidean norm over all trainable leaves together, summed in float32; a scalar."""
    leaves = jax.tree.leaves(grads)
    chosen = zip(leaves, _bools(trainable, grads, "trainable"))
    return jnp.sqrt(sum(jnp.sum(jnp.square(g.astype(jnp.float32))) for g, free in chosen if free))


def _clip_scale(grads: Tree, trainable: Tree | None, clip: float | None) -> Array:
    """Factor that brings the gradients' norm down to `clip`; one when it is below, or clip None."""
    if clip is None:
        return jnp.float32(1.0)
    return clip / jnp.maximum(global_norm(grads, trainable), clip)


def _resolve(rate: Rate | None, done: Array) -> Array:
    """Number to use for the learning rate of the update that follows `done` updates."""
    if rate is None:
        raise ValueError("no learning rate; name it in adamw(...) or update(..., learning_rate=r)")
    return jnp.asarray(rate(done) if callable(rate) else rate, jnp.float32)


def _moments(params: Tree, is_free: list[bool], dtype: DTypeLike) -> Tree:
    """Zeros shaped and sharded like the parameters, None for those that are not trained."""
    leaves, form = _flatten(params)
    held = [jnp.zeros_like(p, dtype) if free else None for p, free in zip(leaves, is_free)]
    return form.unflatten(held)


def _bools(mask: Tree | None, like: Tree, name: str) -> list[bool]:
    """List a mask's bools in the leaf order of `like`; None means true everywhere."""
    leaves, form = _flatten(like)
    if mask is None:
        return [True] * len(leaves)
    flags, found = _flatten(mask)
    if found != form:
        raise ValueError(
            f"{name} is the tree {found} and the parameters are {form}; "
            "build the mask from the same tree of specs"
        )
    return [bool(flag) for flag in flags]


def _flatten(tree: Tree) -> tuple[list[Any], Any]:
    """Leaves and structure (jax.tree.flatten, whose structure type has no stubs)."""
    return jax.tree.flatten(tree)


def _check(b1: float, b2: float, eps: float, weight_decay: float, clip: float | None) -> None:
    """Refuse hyperparameters for which the update is undefined."""
    for name, beta in (("b1", b1), ("b2", b2)):
        if not 0 <= beta < 1:
            raise ValueError(f"{name}={beta} must be from 0 to below 1; V3 uses 0.9 and 0.95")
    if eps <= 0 or weight_decay < 0:
        raise ValueError(f"eps={eps}, weight_decay={weight_decay}; choose eps > 0 and decay >= 0")
    if clip is not None and clip <= 0:
        raise ValueError(f"clip={clip} would stop every update; choose clip > 0, or None for none")
