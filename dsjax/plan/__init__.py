"""Needs of a run on machines that are not here; nothing of it has run on them.

By compiling, in reading order: target (names of machines), ahead (compile a function for one), hlo
(read the program that came out), memory (bytes of a device, by kind), train_step (the whole step of
a run), prefill (the program that reads a prompt). By arithmetic: the rooms cost and evidence.
"""
