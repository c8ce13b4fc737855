"""Scores of a model, as functions of (text, a way to ask the model).

Reading order: likelihood (log-probabilities of given texts, which every other score reads), heldout
(bits per byte and MTP acceptance on text that was held out), ngram (what a text costs without any
learning of features), tasks/ (questions of public benchmarks), grade/ (verdicts on answers),
requests (texts as ids, within the context), measures (numbers with their errors), scored and
answers (items that are ranked, and that are written), journal (the log of items, and going on with
it), identity (which model it was), results, evaluation (all of it).
"""
