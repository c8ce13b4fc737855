"""Rewards by rule: pure functions of prompt, output and reference, none of them learned.

Reading order: sections (think and answer tags, boxes), answers (exact, numeric and mathematical
equality), code (programs, in the sandbox), language (share of words in the prompt's language),
length (a penalty near the limit), rules (all by name, and a reward as a sum of them).

A rule gives 0 to what it cannot read: several answers, none, tags that nest. It takes time linear
in the output, whatever stands in it.
"""
