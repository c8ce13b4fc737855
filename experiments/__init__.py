"""One folder for each question of the reports; each has a README, run.py and its records."""
