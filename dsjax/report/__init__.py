"""Reports of a run: metrics on disk, a live display, plots and traces.

Reading order: lines (a file of JSON lines), metrics (events of a run), pace (speed, read one step
late), display (what a person watches), plots (pictures of a finished run), profile (traces).
"""
