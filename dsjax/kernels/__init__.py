"""Pallas kernels for machines with FP8 units, each the fast form of a plain function below.

Reading order: tiles (operands of the FP8 kernels), hopper, tpu. A kernel is tested against its
plain form on a CPU, in Pallas' simulation. None is needed: elsewhere the plain form runs.
"""
