"""Normal forms of mathematical answers, and where benchmarks look for them in a text.

lm-evaluation-harness 0.4.13: `normal_form`, `are_equal` and `between_dollars` follow
lm_eval/tasks/hendrycks_math/utils.py, the comparison of the MATH paper (Hendrycks et al. 2021);
`final` follows lm_eval/tasks/minerva_math/utils.py (Lewkowycz et al. 2022, app. D).
"""

from __future__ import annotations

import re

REPLACED = (
    ("\n", ""), ("\\!", ""), ("\\\\", "\\"), ("tfrac", "frac"), ("dfrac", "frac"), ("\\left", ""),
    ("\\right", ""), ("^{\\circ}", ""), ("^\\circ", ""), ("\\$", ""),
)
PERCENT = (("\\%", ""), (" .", " 0."), ("{.", "{0."))
UNIT = "\\text{ "
FINAL = re.compile(r"Final Answer: The final answer is(.*?). I hope it is correct.")
END = "I hope it is correct."


def between_dollars(text: str) -> str:
    """A text from its first dollar sign to its last; all of it with fewer than two."""
    first, last = text.find("$"), text.rfind("$")
    return text if first == last else text[first + 1 : last]


def final(text: str) -> str | None:
    """The answer between Minerva's two phrases; None without the first."""
    found = FINAL.search(text + END)
    return found[1].strip() if found else None


def are_equal(one: str, other: str) -> bool:
    """Compare normal forms; texts as they are, where one of them has none."""
    forms = normal_form(one), normal_form(other)
    return one == other if None in forms else forms[0] == forms[1]


def normal_form(text: str) -> str | None:
    """The normal form of an answer; None where its rules fail on it."""
    for old, new in REPLACED:
        text = text.replace(old, new)
    if text.count(UNIT) > 1:
        return None
    text = text.split(UNIT)[0]
    for old, new in PERCENT:
        text = text.replace(old, new)
    if not text:
        return text
    text = f"0{text}" if text.startswith(".") else text
    name, *value = text.split("=")
    if len(value) == 1 and len(name) <= 2:
        text = value[0]
    rooted = _braced_roots(text)
    whole = None if rooted is None else _braced_fractions(rooted.replace(" ", ""))
    return None if whole is None else _stacked("\\frac{1}{2}" if whole == "0.5" else whole)


def _braced_roots(text: str) -> str | None:
    """sqrt3 -> sqrt{3}."""
    head, *pieces = text.split("\\sqrt")
    if not all(pieces):
        return None
    return head + "".join(
        "\\sqrt" + (piece if piece[0] == "{" else f"{{{piece[0]}}}{piece[1:]}") for piece in pieces)


def _braced_fractions(text: str) -> str | None:
    """frac12 -> frac{1}{2}, frac1{72} -> frac{1}{72}."""
    head, *pieces = text.split("\\frac")
    made = head
    for piece in pieces:
        if not piece:
            return None
        if piece[0] == "{":
            made += f"\\frac{piece}"
            continue
        if len(piece) < 2:
            return text
        below = piece[1:] if piece[1] == "{" else f"{{{piece[1]}}}{piece[2:]}"
        made += f"\\frac{{{piece[0]}}}{below}"
    return made


def _stacked(text: str) -> str | None:
    """1/2 -> frac{1}{2}, of whole numbers alone; other single fractions have no normal form."""
    parts = text.split("/")
    if len(parts) != 2:
        return text
    try:
        above, below = map(int, parts)
    except ValueError:
        return None
    return f"\\frac{{{above}}}{{{below}}}" if text == f"{above}/{below}" else text
