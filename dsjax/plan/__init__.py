"""What a run needs: of the memory that is here, and of machines that are not, by compiling.

In reading order: needs (bytes surely needed, counted from specs), room (bytes that are free here),
fit (refuse what does not fit, with flags that make it); then for machines that are not here target
(their names), ahead (compile), hlo (read the program that came out), memory (bytes of a device, by
kind). Nothing of the second kind has run on the machines it speaks of.
"""
