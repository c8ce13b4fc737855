"""Frozen dataclasses that say what is to be done and check themselves before anything is allocated.

Reading order: model (sizes and choices), loss and schedule (weights; numbers that change with
training), parallel (layout), run (a model with its data, optimizer, precision, machine and output),
fields (checks of what a field may hold), load (a config file), flag_tree (a dataclass as flags),
commandline and typed (a line, and the values in it), refusal (a wrong flag as a sentence), stored
(a run as JSON and back).
"""
