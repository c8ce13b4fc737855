"""The reports in plain NumPy loops: the oracle for the JAX model, written apart from it.

Read in this order: config, trees, attention, moe, model, losses, optim, speculative; sample draws
parameters. Rules that hold in every file:

- Arithmetic is float64. One sequence at a time: `x [T, D]`, `tokens [T]`, `segments [T]`.
- Every differentiable path is complex-analytic (no abs, no max, no conjugate); choices (top-k,
  the maximum that a softmax subtracts) look at `.real`. So `trees.directional_gradient`, the
  complex step, is an exact derivative, free of cancellation.
- Parameters are nested dicts and lists of arrays, one entry a layer. `trees.as_float64` converts.
- A query at padding (segment 0) sees no key and its attention output is zero; padding tokens are
  sent to no routed expert. Compare with another model only where segments are nonzero.
"""
