"""Tests of dsjax.parallel; a package because tests/optim has a test_schedule.py too."""
