"""Language consistency: the share of the reasoning's words that are in the prompt's language.

R1 report, sec. 2.3.2. A rule sees scripts and not languages: Latin words, as of English, and Han
characters, each counted as a word, as of Chinese. French passes for English. Digits, single letters
(variables), tags and LaTeX commands are no words; a word that mixes scripts is in no language.
"""

from __future__ import annotations

import re
import unicodedata

from dsjax.rl.rewards import sections

_HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORDS = re.compile(rf"\\[A-Za-z]+|</?(?:think|answer)>|([{_HAN}])|([^\W\d_{_HAN}]{{2,}})")
_LATIN = re.compile("[A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f]+")


def language(prompt: str, text: str, reference: str) -> float:
    """Return words of the prompt's script / words, of the reasoning; 0 where either has none."""
    asked, used = count(prompt), count(sections.reasoning(prompt, text))
    if not asked["latin"] + asked["han"] or not sum(used.values()):
        return 0.0
    target = "latin" if asked["latin"] >= asked["han"] else "han"
    return used[target] / sum(used.values())


def count(text: str) -> dict[str, int]:
    """Count words: latin, han and others."""
    found = {"latin": 0, "han": 0, "other": 0}
    for word in _WORDS.finditer(unicodedata.normalize("NFC", text)):
        if word[1]:
            found["han"] += 1
        elif word[2]:
            found["latin" if _LATIN.fullmatch(word[2]) else "other"] += 1
    return found
