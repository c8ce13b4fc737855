"""Studies of small runs: the config they share, arms x seeds, verdicts by rule, figures.

Reading order: config (the run that arms change), trials (training arms and seeds), verdicts
(intervals and words), answer (from arms to a record), drawn (figures).
"""
