"""Formats in which numbers are multiplied and summed (V3 report sec. 3.3).

Reading order: wide (the dtype of sums and losses), precision (the three matrix products of a Linear
and what each precision keeps for them), formats (codes of 8 and 12 bits), scaled (codes with a
scale a tile), gemm (the FP8 products), codes (for machines that multiply codes), accumulate (the
registers of Hopper, simulated); vary and layout, of a mesh and of a CPU.
"""
