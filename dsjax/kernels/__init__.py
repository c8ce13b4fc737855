"""Kernels for machines that have them, each the fast form of a plain function.

Reading order: tiles (operands of the FP8 kernels), hopper, tpu; flash (the contract of a vendor's
attention, and rows as it takes them), cudnn. A Pallas kernel is tested against its plain form on a
CPU, in Pallas' simulation; a vendor's through a twin of its contract. None is needed: elsewhere the
plain form runs.
"""
