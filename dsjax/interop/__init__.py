"""Seams to other libraries' ways of holding a model.

nnx: a parameter tree as a Flax `nnx.Module` that their optimizers and transforms train, and back.
"""
