"""Contamination: items of tasks that stand in a corpus, verbatim or with words changed.

Reading order: words (texts as numbered words), items (what is looked for), corpus (a stream of
pieces), grams (stretches of n words, exactly), near (copies by MinHash), scan (one pass over a
corpus), findings (what it came to), report (tables and files), clean (a corpus without the hits),
scores (a task's score on its clean and its dirty part).
"""
