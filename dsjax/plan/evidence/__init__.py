"""The planner held against the world: runs that others have told of, and headlines.

Reading order: published (the runs, as configs), calibration (each beside what is predicted of it),
claims (the headlines, step by step).
"""
