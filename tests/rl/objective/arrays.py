"""Arrays of a small batch in float64, and finite differences."""

import jax
import numpy as np

B, T = 5, 7


def batch(seed):
    """Log-probabilities new and old [B, T], advantages [B, 1], mask [B, T] with a full row."""
    rng = np.random.default_rng(seed)
    old = -rng.exponential(1.0, (B, T))
    new = old + 0.4 * rng.standard_normal((B, T))
    advantages = rng.standard_normal((B, 1))
    lengths = np.array([T, 1, 4, 2, 6])
    return new, old, advantages, np.arange(T)[None] < lengths[:, None]


def agrees_with_differences(f, x, step=1e-6, rtol=1e-7):
    """Hold the gradient of a scalar to central differences, entry by entry; return it."""
    gradient = np.asarray(jax.grad(f)(x))
    f = jax.jit(f)
    for at in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[at] += step
        down[at] -= step
        slope = (float(f(up)) - float(f(down))) / (2 * step)
        # Truncation is step^2 = 1e-12, rounding 1e-16 / step = 1e-10 of values of about one.
        assert abs(slope - gradient[at]) <= rtol * max(1, abs(slope)), (at, slope, gradient[at])
    return gradient
