"""A run's folder: who writes it, what its weights belong to, where it starts, what ends it badly.

Reading order: hold (one writer), identity (tokenizer and tokens), resume (where a run starts or
goes on), divergence (which checkpoints are good when gradients are not).
"""
