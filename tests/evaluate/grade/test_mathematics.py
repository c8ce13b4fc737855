"""Answers compare as math-verify compares them, and what takes too long is not equal."""

import importlib.util
from concurrent.futures import ThreadPoolExecutor

import pytest

from dsjax.errors import UserError
from dsjax.evaluate.grade import mathematics
from tests.evaluate.grade.processes import adopting, children

HALF, MATRIX = r"\frac{1}{2}", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}"
EQUAL = [
    ("0.5", HALF), (r"\frac12", HALF), (r"\dfrac{2}{4}", HALF), ("1/2", HALF), ("1,000", "1000"),
    (r"5\text{ cm}", "5"), (r"\$18.90", "18.90"), (r"90^\circ", "90"), (r"\sqrt{8}", r"2\sqrt{2}"),
    ("[1,2]", "[1, 2]"), (r"\{1,2\}", r"\{2,1\}"), (r"(-\infty,2)\cup(3,\infty)",
                                                   r"(3,\infty)\cup(-\infty,2)"),
    (MATRIX, MATRIX.replace("&", " & ")), ("(x+1)^2", "x^2+2x+1"), ("5", "x=5"), ("2^{10}", "1024"),
    (r"\frac{\pi}{4}", r"\frac{2\pi}{8}"), ("6-5i", "6 - 5i"), (r"\text{Evelyn}", r"\text{Evelyn}"),
    (r"(3,\frac{\pi}{2})", r"(3, \pi/2)"), (r"x \in [-2,7]", "[-2,7]"),
    ("(1,2)", "1<x<2"),  # and not the other way round: math-verify takes a set for a relation
]
UNEQUAL = [
    ("0.333", r"\frac{1}{3}"), (r"\sqrt2", "1.41"), ("(1,2)", "[1,2]"), ("(2,1)", "(1,2)"),
    (r"\{1,2\}", r"\{1,2,3\}"), ("1<x<2", "(1,2)"),
    (MATRIX, r"\begin{pmatrix}1&3\\2&4\end{pmatrix}"), ("-1", "1"),
    (r"\text{yes}", r"\text{no}"), (r"\pi", "3.14159"), ("", "1"), ("x+1", "x-1"),
]
WHOLE = [
    ("So it is 50%.", "The answer is $50\\%$", True), ("so $x = 3$.", "$\\boxed{3}$", True),
    ("The answer is 1/2.", "$\\boxed{0.5}$", True), ("I do not know.", "$\\boxed{0.5}$", False),
    ("", "", False), ("first $\\boxed{1}$, no: $\\boxed{2}$", "$2$", True),
    ("first \\boxed{1}, no: \\boxed{2}", "$2$", False), ("\0\ud800", "$2$", False),
]
BOMBS = ["9^{9^{9^{9}}}", "(" * 5000 + "1" + ")" * 5000, r"\frac{" * 2000 + "1" + "}{2}" * 2000,
         "10000000!"]


@pytest.fixture(autouse=True, scope="module")
def nothing_is_left():
    with adopting():
        before = children()
        yield
        mathematics.close()
        assert children() <= before


def test_equal_answers_have_one_reading_and_no_answer_has_none():
    texts = ["Six minus three is 3.", "Thus the answer is: 3", "We find that it is $3$"]
    found = [mathematics.compare(text, "$3$") for text in texts]
    assert [one.is_equal for one in found] == [True] * 3
    assert len({one.reading for one in found}) == 1
    assert mathematics.compare("no idea", "$3$").reading == ""
    assert mathematics.compare("it is $7$", "$3$").reading != found[0].reading


def in_a_box(text: str) -> str:
    return f"Therefore it is $\\boxed{{{text}}}$."


def test_equal_and_unequal_pairs():
    wrong = [pair for pair in EQUAL if not mathematics.equal(*map(in_a_box, pair))]
    wrong += [pair for pair in UNEQUAL if mathematics.equal(*map(in_a_box, pair))]
    wrong += [row for row in WHOLE if mathematics.equal(*row[:2]) != row[2]]
    assert wrong == []


def test_verdicts_are_the_librarys():
    """As minerva_math calls it, in this process."""
    from math_verify import parse, verify

    pairs = [tuple(map(in_a_box, pair)) for pair in EQUAL + UNEQUAL] + [row[:2] for row in WHOLE]
    here = [verify(gold=parse(gold), target=parse(answer)) for answer, gold in pairs]
    assert [mathematics.equal(*pair) for pair in pairs] == here


@pytest.mark.slow
def test_bombs_end_at_the_limit_from_several_threads():
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda bomb: mathematics.equal(in_a_box(bomb), "$2$", 0.5), BOMBS))
    assert found == [False] * len(BOMBS)
    assert mathematics.equal("$2$", "$2$")


def test_a_missing_library_is_a_sentence(monkeypatch):
    mathematics.require.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"dsjax\[evaluate\]"):
        mathematics.equal("1", "1")


@pytest.mark.parametrize(("text", "want"), [
    (r"\boxed{1} and \boxed{\frac{1}{2}}.", r"\frac{1}{2}"), (r"$\boxed 5$ is it", "5"),
    (r"\fbox{3}", "3"), (r"\boxed{1", None), ("none", None), (r"\boxed{}", ""),
    (r"\boxed x {5}", "x {5}"), (r"\boxed\text{a}", None), (r"{\boxed{a}}", "a")])
def test_the_last_box_is_read(text, want):
    assert mathematics.boxed(text) == want


@pytest.mark.parametrize(("text", "marked", "last"), [
    ("so 3.\n#### 1,234", "1,234", "1,234"), ("#### -5 or #### 6", "-5", "6"),
    ("it costs $18.50.", None, "$18.50."), ("12 and -7", None, "-7"), ("none", None, None),
    ("#### five", None, None)])
def test_numbers_are_read_as_the_harness_reads_them(text, marked, last):
    assert mathematics.marked_number(text) == marked
    assert mathematics.last_number(text) == last
