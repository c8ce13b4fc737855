"""Reinforcement learning from rules, as the R1 report has it (arXiv 2501.12948).

Reading order: objective (GRPO and its refinements, an equation a function), rewards (rules that
give an output its reward), tasks (problems made here, with their answers and worked solutions);
then preference (a reward learned from pairs), rollout (groups of outputs by the engine), weights
(trainer to engine), update (GRPO by the train step), state (saved and restored), exam, display,
base (a model to begin with), opening (what is refused and said first) and loop.
"""
