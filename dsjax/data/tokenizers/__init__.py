"""Text to ids and back.

Reading order: tokenizer (the byte-level BPE and its decoder), file (what a tokenizer.json says,
obeyed or refused), settings (begin and end tokens), patterns and long_words (what would take too
long).
"""
