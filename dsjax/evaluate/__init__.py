"""What a model is worth: scores as functions of (text, a way to ask the model).

Reading order: ngram (what a text costs without any learning of features).
"""
