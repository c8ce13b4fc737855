"""Accuracy: the one answer that an output gives, compared with the reference.

R1 report, sec. 2.2.2: answers of mathematics stand in a given place (a box), so that a rule can
check them. Here an output that gives two answers gives none, also inside one box ("3 or 4"), and
only what stands in the place is read: a right number in passing earns nothing. An empty answer is
never right, and an empty reference is a fault of the data, which dsjax.rl.rewards.rules counts.
"""

from __future__ import annotations

import re
from decimal import Decimal

from dsjax.evaluate.grade import mathematics
from dsjax.evaluate.tasks import latex
from dsjax.rl.rewards import sections

SECONDS = 2.0
"""Of CPU, for one comparison by math-verify."""
MOST_CHARACTERS = 1000
"""Of an answer; a longer one is right only if the reference is as long."""
_NUMBER = re.compile(r"[+-]?(?:\\?\$)?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)?(?:\.[0-9]+)?(?:[eE][+-]?"
                     r"[0-9]{1,4})?")
_MARKED = re.compile(r"^#### *(\S.*)$", re.MULTILINE)
_NAMED = re.compile(r"[^=A-Za-z]*[A-Za-z][^=]*=[^=]*$")
_WORD = re.compile(r"\\?[A-Za-z]{2,}")
_BETWEEN = re.compile(
    r"\b(?:or|either|and|nor|not|maybe|perhaps|vs)\b|[;|~\n]|(?<!\\)[&$]|\\\\|\\text\s*\{[^}]*[0-9]"
    r"|\\(?:lor|vee|land|wedge|cup|cap|pm|mp|q?quad|approx|sim|simeq|cong|neq?)(?![A-Za-z])",
    re.IGNORECASE)
"""Marks that stand between two answers; in a reference they are a part of the answer."""


def exact(prompt: str, text: str, reference: str) -> float:
    """1 if the answer in its tags is the reference to the character, but for space around it."""
    return float(sections.answer(prompt, text) == _filled(reference).strip())


def colon(prompt: str, text: str, reference: str) -> float:
    """1 if what follows the output's only colon is the reference, as tasks of dsjax.rl.tasks say.

    A worked solution stands before the colon and is not looked at.
    """
    return float(after_colon(prompt, text) == _filled(reference))


def number(prompt: str, text: str, reference: str) -> float:
    """1 if the answer is one number of ASCII digits, equal to the reference: 1,000.0 is 1000.

    It stands in the answer's tags or in a box there, in a box, or after GSM8K's "#### ".
    """
    given, right = (None if one is None else _number(one) for one in
                    (_given(prompt, text), _stated(reference)))
    return float(given is not None and given == right)


def boxed(prompt: str, text: str, reference: str) -> float:
    """1 if the box holds the reference, in the MATH paper's normal form."""
    given, right = _boxed(prompt, text), _stated(reference)
    return float(given is not None and _is_one(given, right) and latex.are_equal(given, right))


def math(prompt: str, text: str, reference: str) -> float:
    """1 if the answer equals the reference in normal form, or for math-verify.

    math-verify takes one of several numbers. It is asked about plain formulas alone: short, in
    ASCII (no digits that only look so), of at most one word.

    Raises:
        UserError: math-verify is not installed.
    """
    given, right = _given(prompt, text), _stated(reference)
    if not given or not _is_one(given, right):
        return 0.0
    if latex.are_equal(given, right):
        return 1.0
    words = [word for word in _WORD.findall(given) if not word.startswith("\\")]
    if len(words) > 1 or not given.isascii():
        return 0.0
    return float(mathematics.equal(f"${given}$", f"${right}$", SECONDS))


def after_colon(prompt: str, text: str) -> str | None:
    """Return what `colon` reads of an output: the text behind its only colon, None without one."""
    _, mark, answer = text.partition(":")
    return answer if mark and ":" not in answer else None


def in_digits(prompt: str, text: str) -> str | None:
    """Return what `number` reads, in one form: 1,000.0 and 1e3 are 1000; None where it reads none.
    """
    given = _given(prompt, text)
    found = None if given is None else _number(given)
    if found is None:
        return None
    digits = f"{found or Decimal(0):f}"
    return digits.rstrip("0").rstrip(".") if "." in digits else digits


def in_box(prompt: str, text: str) -> str | None:
    """Return what `boxed` reads, in the MATH paper's normal form; None where it reads nothing."""
    return _normal(_boxed(prompt, text))


def in_normal_form(prompt: str, text: str) -> str | None:
    """Return what `math` reads, in that form; None where it reads nothing."""
    return _normal(_given(prompt, text))


def _normal(given: str | None) -> str | None:
    return None if not given else latex.normal_form(given) or given


def _is_one(given: str, right: str) -> bool:
    """True if nothing stands between two answers that does not stand in the reference too."""
    if len(given) > max(MOST_CHARACTERS, len(right)):
        return False
    if "=" in given and "=" not in right and not _NAMED.match(given):
        return False
    marks = (set(map(str.lower, _BETWEEN.findall(one))) for one in (given, right))
    return next(marks) <= next(marks)


def _given(prompt: str, text: str) -> str | None:
    """The answer: in its tags, or there in a box; else in a box; else after GSM8K's mark."""
    place, is_tagged = _place(prompt, text)
    if found := sections.boxes(place):
        return _bare(_one(found))
    return _bare(place if is_tagged else _one(_MARKED.findall(place)))


def _boxed(prompt: str, text: str) -> str | None:
    return _bare(_one(sections.boxes(_place(prompt, text)[0])))


def _place(prompt: str, text: str) -> tuple[str, bool]:
    """The text that holds the answer, and if it stood in tags; nothing where tags are in disorder.
    """
    rest = sections.final(prompt, text)
    if rest is None or not any(tag in rest for tag in sections.TAGS):
        return rest or "", False
    inner = sections.answer(prompt, text)
    return inner or "", inner is not None


def _one(found: list[str]) -> str | None:
    """The answer that is given, maybe more than once; None of two."""
    forms = {latex.normal_form(one) or one for one in set(found)}
    return found[-1] if len(forms) == 1 else None


def _bare(text: str | None) -> str | None:
    """An answer without one pair of dollar signs around it, and without space."""
    if text is None or len(text) < 2 or (text[0], text[-1]) != ("$", "$"):
        return text
    return text[1:-1].strip()


def _stated(reference: str) -> str:
    """The reference, or what its last box or mark holds."""
    _filled(reference)
    marked = _MARKED.findall(reference)
    found = mathematics.boxed(reference) or (marked[-1] if marked else reference)
    return _filled(_bare(found.strip()) or "")


def _filled(reference: str) -> str:
    if not reference.strip():
        raise ValueError("the reference is empty")
    return reference


def _number(text: str) -> Decimal | None:
    if len(text) > MOST_CHARACTERS or not _NUMBER.fullmatch(text):
        return None
    digits = re.sub(r"[\\$,]", "", text)
    return Decimal(digits) if re.search("[0-9]", digits.lower().partition("e")[0]) else None

