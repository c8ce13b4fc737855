"""How numbers are held while they are multiplied and summed (V3 report sec. 3.3).

Reading order: wide (the dtype of sums and losses), products (the three matrix products of a Linear
and what each precision keeps for them).
"""
