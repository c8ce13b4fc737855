"""One section of the reports a file: parameters as Specs, and the layer as a function of them.

Reading order: swiglu, mla (latent attention), gqa (its peer for ablations), cache (the past that
decoding reads), paged (the same in pages), router, replicas (copies of experts), moe, remat (what
is kept for the backward pass), backend (the functions a layer is handed because they depend on the
machine).
"""
