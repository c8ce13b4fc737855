r"""The one right answer in its place earns 1; anything that hedges, hides or explodes earns 0."""

import pytest

from dsjax.evaluate.grade import mathematics
from dsjax.rl.rewards import answers, rules

SOLUTION = "It is $7 \\cdot 2 = \\boxed{14}$."
HEDGES = [
    "3 or 4", "either 3 or 4", "the answer is either 3 or 4", "3, 4", "3,4", "3;4", "3 4", "3|4",
    "3\\\\4", "3\n4", "3&4", "3 & 4", "3=4", "4=3", "3\\text{ or }4", "4\\text{ or }3",
    "3\\lor 4", "3\\land4", "3\\cup 4", "3\\approx 4", "3\\quad 4", "3 \\pm 1", "\\{3,4\\}",
    "[3,4]", "x=3, x=4", "x\\in\\{3,4\\}", "$3$ $4$", "3$ or $4", "3~4", "3\\text{ 4}", "3 \\neq 4",
    "not 4", "3 perhaps 4", "3/4", "34", "", " ", "?", "\\", "}", "\\frac", "\\text{3 or 4}",
    "3 <= x <= 4", "three", "\\boxed{3}\\boxed{4}",
]
LOOK_ALIKES = ["\uff14", "\u0664", "\u2074", "\U0001d7d2", "4\u200b", "\u2463", "\u096a"]
PLACES = {
    "tags": "<think>a</think><answer>{}</answer>", "tags and box": "<think>a</think><answer>It is "
    "\\boxed{{{}}}.</answer>", "box": "So it is $\\boxed{{{}}}$.",
}


def test_exact_is_to_the_character():
    text = "<think>it is 5</think><answer> 4\n</answer>"
    assert answers.exact("", text, "4") == 1
    assert answers.exact("", text, " 4 ") == 1
    for wrong in (text.replace("4", "4.0"), text + "<answer>4</answer>", "4", "<answer>5</answer>",
                  "<think><answer>4</answer></think>", text.replace("4", "\uff14")):
        assert answers.exact("", wrong, "4") == 0


def test_colon_takes_the_answer_after_the_only_colon():
    assert answers.colon("8+6=", "8864:4", "4") == answers.colon("8+6=", ":4", "4") == 1
    for wrong in ("4", "", ":", ":3:4", "::4", ":44", ": 4", ":4 ", "4:", "4:5", ":\uff14"):
        assert answers.colon("8+6=", wrong, "4") == 0


@pytest.mark.parametrize(("given", "reference", "reward"), [
    ("1,000", "1000", 1), ("1000.0", "1,000", 1), ("$18.90", "18.9", 1), ("\\$18.90", "18.9", 1),
    ("-4", "-4", 1), ("+4", "4", 1), ("1e3", "1000", 1), (".5", "0.5", 1), ("4", "5", 0),
    ("3,4", "34", 0), ("12,34", "1234", 0), ("1e400", "1e400", 1), ("1e400", "4", 0),
    ("1e99999", "4", 0), ("1e999999999999", "4", 0), ("4 cm", "4", 0), ("inf", "4", 0),
    ("nan", "nan", 0), ("", "4", 0), ("e5", "4", 0), (".", "4", 0), ("--4", "4", 0),
    ("4_0", "40", 0),
    ("4" * 900, "4" * 900, 1), ("4" * 2000, "4" * 2000, 0),
])
def test_number_is_one_number_by_value(given, reference, reward):
    for place in PLACES.values():
        assert answers.number("", place.format(given), reference) == reward
        assert answers.number("", f"{given} was my first thought", reference) == 0


def test_number_reads_gsm8k():
    assert answers.number("", "7*2 = 14\n#### 14", "She has 14.\n#### 14") == 1
    assert answers.number("", "#### 13\n#### 14", "#### 14") == 0
    assert answers.number("", "#### 14 or 15", "#### 14") == 0
    assert answers.number("", "14", "#### 14") == 0


@pytest.mark.parametrize("rule", [answers.exact, answers.number, answers.boxed, answers.math])
@pytest.mark.parametrize("right", ["3", "4"])
def test_nothing_that_hedges_or_only_looks_right_earns(rule, right):
    earned = [(given, name) for name, place in PLACES.items() for given in HEDGES + LOOK_ALIKES
              if rule("", place.format(given), right)]
    assert earned == []


@pytest.mark.parametrize(("given", "right"), [
    ("14", SOLUTION), ("14.0", SOLUTION), ("\\frac{28}{2}", SOLUTION), ("x=14", SOLUTION),
    ("14\\text{ cm}", SOLUTION), ("14 cm", SOLUTION), ("$14$", SOLUTION), ("7\\cdot 2", SOLUTION),
    ("0.5", "\\frac12"), ("\\{2,1\\}", "\\{1,2\\}"), ("(x+1)^2", "x^2+2x+1"), ("\\pm 3", "\\pm3"),
    ("3\\text{ or }4", "3\\text{ or }4"), ("x=3", "3"), ("2\\sqrt2", "\\sqrt{8}"), ("|x|", "|x|"),
    ("1<x<2", "1<x<2"), ("(1,2)", "(1, 2)"),
])
def test_math_knows_the_ways_to_write_an_answer(given, right):
    for place in PLACES.values():
        assert answers.math("", place.format(given), right) == 1


def test_boxed_is_normal_form_alone():
    assert answers.boxed("", "it is \\boxed{\\dfrac12}", "\\frac{1}{2}") == 1
    assert answers.boxed("", "it is \\boxed{\\frac24}", "\\frac{1}{2}") == 0
    assert answers.boxed("", "<think>\\boxed{4}</think> well", "4") == 0
    assert answers.boxed("", "\\boxed{4}, that is \\boxed{4}", "4") == 1


@pytest.mark.parametrize("text", [
    "\\boxed{4} or \\boxed{5}", "<think>\\boxed{4}</think><answer>\\boxed{5}</answer>",
    "<think>\\boxed{4}", "<answer>4</answer><answer>5</answer>", "<answer>4", "4</answer>",
    "<think>a</think><answer>4</answer><answer>4</answer>", "4", "the answer is 4", "4" * 5000,
    "<think>a</think><answer>\\boxed{4}<answer></answer>",
    "<think>a</think><answer>4</answer></think>", "\\boxed{4", "\\boxed4", "\\boxed{\ud8004}",
    "<answer>" * 5000 + "4" + "</answer>" * 5000, "\\boxed{4}" * 5000 + "\\boxed{5}",
])
def test_an_answer_in_the_wrong_place_or_said_twice_earns_nothing(text):
    for rule in (answers.exact, answers.number, answers.boxed, answers.math):
        assert rule("", text, "4") == 0


def test_expressions_that_explode_earn_nothing_and_leave_the_next_alone():
    for bomb in ("9^{9^{9^{9}}}", "(" * 400 + "4" + ")" * 400, "1e400" + "0" * 900):
        assert answers.math("", f"\\boxed{{{bomb}}}", "4") == 0
    assert answers.math("", "\\boxed{2+2}", "4") == 1
    mathematics.close()


@pytest.mark.parametrize(("rule", "equal", "another", "none"), [
    ("colon", [":4", "8864:4"], ":5", [":4:4", "4", ""]),
    ("exact", ["<answer>4</answer>", "<think>a</think><answer> 4 </answer>"],
     "<answer>4.0</answer>", ["4", "<answer>4</answer><answer>4</answer>"]),
    ("number", ["#### 1,000", "\\boxed{1000.00}", "<answer>1e3</answer>"], "#### 1000.5",
     ["#### ten", "\\boxed{3}\\boxed{4}", "1000"]),
    ("number", ["#### -0", "#### 0.0"], "#### 1e-9", []),
    ("number", ["#### " + "9" * 40, "#### " + "9" * 40 + ".0"], "#### " + "9" * 39 + "8", []),
    ("boxed", ["\\boxed{\\frac12}", "so \\boxed{\\frac{1}{2}}"], "\\boxed{2}",
     ["<think>a</think><answer>2</answer>"]),
    ("math", ["<think>a</think><answer>\\frac12</answer>", "\\boxed{\\frac{1}{2}}"],
     "\\boxed{2}", ["2", "", "<think>a</think><answer></answer>"]),
])
def test_votes_are_equal_texts_where_answers_are_equal(rule, equal, another, none):
    read = rules.VOTES[rule]
    (vote,) = {read("", text) for text in equal}
    assert vote is not None
    assert read("", another) not in (vote, None)
    assert [read("", text) for text in none] == [None] * len(none)
