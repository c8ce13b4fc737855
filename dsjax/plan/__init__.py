"""Needs of a run on machines that are not here, by compiling; nothing of it has run on them.

In reading order: target (names of machines), ahead (compile a function for one), hlo (read the
program that came out), memory (bytes of a device, by kind), train_step (the whole step of a run).
"""
