"""Pallas kernels for machines that have the unit for it, each the twin of a plain function below.

Reading order: tiles (what the FP8 kernels read), hopper, tpu. A kernel is tested against its twin
on a CPU, in Pallas' simulation of the machine. None is needed: without its machine the twin runs.
"""
