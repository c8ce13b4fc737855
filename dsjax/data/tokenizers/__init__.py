"""Text to ids and back.

Reading order: tokenizer (the byte-level BPE and its decoder), file (settings of tokenizer.json,
obeyed or refused), settings (begin and end tokens), patterns and long_words (text that takes too
long).
"""
