"""Layers put together: one forward pass, used by training, sampling and pipelines alike.

Reading order: block (attention and feed-forward), transformer (the stack), mtp (multi-token
prediction), loss (every loss of the reports), count (parameters, FLOPs, cache bytes from Specs).
"""
