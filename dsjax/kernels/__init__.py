"""Pallas kernels for machines that have the unit for it, each the twin of a plain function below.

A kernel has the signature of its twin and is tested against it on a CPU, in Pallas' simulation of
the machine. None is needed: without its machine the twin runs.
"""
