"""Pure functions of arrays that know no config; each fast form stands beside a plain one.

Reading order: norm, linear, rope, attention, attention_cached, experts (permute, MLP, combine),
expert_mlp (their products), experts_few (for a handful of tokens), buckets, swiglu, token_loss.
"""
