"""Routed experts that are larger than the device: kept in files or the host's memory, cached in
slots.

Reading order: slots (who lies where, and who goes), store (where experts are, one at a time), fetch
(threads that bring them), cache (the slots on the device), layers (a model's layers over it, one by
one), decode (generation by them), load (a folder as such a model).
"""
