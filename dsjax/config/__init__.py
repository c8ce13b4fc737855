"""Frozen dataclasses that say what is to be done and check themselves before anything is allocated.

Reading order: model (sizes and choices), loss and schedule (weights; numbers that change with
training), parallel (layout), machine (fit to one), run (a model with its data, optimizer,
precision, machine and output), rl (rewards), fields (checks of what a field may hold), load (a
config file), stored (a run as JSON and back), and the room flags (the command line).
"""
