"""Where a run meets a machine: every choice that depends on the hardware.

Reading order: hardware (one table of chips, and the peak of this machine), platform (precision,
kernels and the header that says what was chosen), compiler (options of XLA), program_cache
(compiled programs kept between processes), free_memory (bytes that are free here), needs (bytes a
run surely needs), fit (refuse what does not fit, with flags that make it).
"""
