"""Pure functions of arrays that know no config; each fast form stands beside a plain one.

Reading order: norm, linear, rope, attention, grouped (the experts' products), token_loss.
"""
