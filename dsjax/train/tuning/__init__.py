"""Fine-tuning by the loop of pre-training: what is read, and which part of the model learns.

Reading order: examples (lines of a file to tokens and their weights), rows (packed into a corpus),
partial (programs of a part that learns), frozen (the weights that rest), measure (the experts that
a task uses).
"""
