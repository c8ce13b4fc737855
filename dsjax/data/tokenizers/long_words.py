"""Cuts in text that has no end of a word for very long, for the training of a tokenizer only.

Training counts pairs inside words and takes time in the square of a word's length: a chromosome or
a file of base64 in one line would not end. A run of letters, of signs or of spaces longer than
`LONGEST` is cut there, at the same places every time; other text stays as it is, so that it gives
the tokenizer it always gave. Encoding needs no cuts: it takes n log n.
"""

import re
from collections.abc import Iterable, Iterator

LONGEST = 1024
"""Characters; the longest words of any language, German law and Thai sentences too, have fewer."""
_SUSPECT = re.compile(rf"\S{{{LONGEST}}}|\s{{{LONGEST}}}")
_RUN = re.compile(rf"[^\W\d_]{{{LONGEST}}}|(?:[^\w\s]|_){{{LONGEST}}}|\s{{{LONGEST}}}")


def cut(texts: Iterable[str]) -> Iterator[str]:
    """Yield the texts, those with a long run in pieces that end inside it."""
    for text in texts:
        start = 0
        if _SUSPECT.search(text):
            for run in _RUN.finditer(text):
                yield text[start : run.end()]
                start = run.end()
        yield text[start:] if start else text
