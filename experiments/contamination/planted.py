"""Made-up items and corpora with copies planted at known rates.

Texts are walks of a chain of words drawn from the embedded corpus: each word follows another as
often as it does there, or is drawn anew after a word that has fewer than eight others behind it,
as rare words lead back into the plays. The walks read like English, and two of them share many
short stretches.
"""

import itertools
import json
import random
from collections import defaultdict
from functools import cache

from dsjax.data import sources

ENDS = (".", ".", "?", "!", ";")


@cache
def chain():
    words = " ".join(sources.shakespeare()[:12]).split()
    follow = defaultdict(list)
    for one, other in itertools.pairwise(words):
        follow[one].append(other)
    return words, {word: own for word, own in follow.items() if len(set(own)) >= 8}


def text(draw, length):
    """A walk of so many words."""
    words, follow = chain()
    made = [draw.choice(words)]
    while len(made) < length:
        made.append(draw.choice(follow.get(made[-1], words)))
    return " ".join(made)


def items(number, seed, least=20, most=120):
    """Questions and answers, as rows of a task's file."""
    draw = random.Random(seed)
    return [{"id": f"q{i}", "question": text(draw, draw.randint(least, most)),
             "answer": text(draw, draw.randint(least, most))} for i in range(number)]


def edited(words_of, draw, rate=0.05):
    """A text of which `rate` of the words change places with the next, and `rate` are dropped.

    A tenth of the words stand in other letters, and a tenth have another mark behind them.
    """
    words = words_of.split()
    for i in range(len(words) - 1):
        if draw.random() < rate:
            words[i], words[i + 1] = words[i + 1], words[i]
    words = [word for word in words if draw.random() >= rate]
    for i, word in enumerate(words):
        if draw.random() < 0.1:
            words[i] = word.upper()
        if draw.random() < 0.1:
            words[i] = word.strip(".,;:!?") + draw.choice(ENDS)
    return " ".join(words)


def corpus(plants, seed, documents=None, length=400):
    """Documents of text, in each of the first of which a plant stands somewhere inside."""
    draw = random.Random(seed)
    made = []
    for plant in [*plants, *[None] * ((documents or len(plants)) - len(plants))]:
        words = text(draw, length).split()
        at = draw.randrange(len(words))
        made.append(" ".join([*words[:at], *([plant] if plant else []), *words[at:]]))
    return made


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
