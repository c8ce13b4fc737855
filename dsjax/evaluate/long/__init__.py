"""Use of a long context: a fact hidden in text, asked for at its end (needle in a haystack).

In reading order: needles (facts, texts that hide them), heat (scores by length and depth).
"""
