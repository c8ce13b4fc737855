"""Scores of a model, as functions of (text, a way to ask the model).

Reading order: heldout (likelihood, bits per byte and MTP acceptance on text that was held out),
ngram (what a text costs without any learning of features).
"""
