"""Shared by all experiments: records of numbers, the tables made from them, arms, commands."""
