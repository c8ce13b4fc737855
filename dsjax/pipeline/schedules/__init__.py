"""Schedules of a pipeline as tables of operations.

Reading order: table (its words), flush, zero_bubble, dualpipe (the tables), build (by name; the
lockstep form), validate (a proof that one is right), simulate (when everything runs), draw.
"""
