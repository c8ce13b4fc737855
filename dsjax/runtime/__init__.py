"""Every choice of a run that depends on the hardware.

Reading order: hardware (one table of chips, and the peak of this machine), precision (which
products, by which kernel), attention (plain blocks or a vendor's kernel), backend (the one place
that chooses a Backend for a machine, a precision and a layout; `layers.backend.single` is the plain
one it begins with), header (what was chosen, said), compiler (options of XLA), cpu (memory of a
process), program_cache (compiled programs kept between processes), free_memory (bytes that are free
here), needs (bytes a run surely needs), fit (refuse what does not fit, with flags that make it).
"""
