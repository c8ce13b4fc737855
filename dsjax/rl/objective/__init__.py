"""GRPO as pure functions of arrays: one public function an equation.

Reading order: advantage (rewards of a group to advantages), ratio (policy over old policy, clipped
surrogate), kl (distance to the reference), weights (which tokens count and how much), mismatch
(log-probabilities of engine and trainer compared, and corrected), support (tokens that sampling
could have chosen), loss (all of them as one token loss).

Axes: B outputs, T their tokens, V vocabulary. Log-probabilities are natural, of the token that was
sampled, [B, T]; `mask` [B, T] is true at tokens of the output. Whatever stands elsewhere, inf and
NaN too, changes neither a value nor a gradient.
"""
