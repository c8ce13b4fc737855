"""What a run would need on machines that are not here, by compiling it for them.

In reading order: target (names of machines), ahead (compile), hlo (read the program that came out),
memory (bytes of a device, by kind). Nothing here has run on the machines it speaks of.
"""
