"""Rules by name make a reward; a rule that fails gives 0 and is named; giants take linear time."""

import math
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsjax.errors import UserError
from dsjax.evaluate.grade import walls
from dsjax.rl.rewards import code, language, length, rules, sections

GOOD = "<think>two and two make four</think><answer>4</answer>"
ASKED = "How much is two and two?"
HAN = "\u4e00\u52a0\u4e8c"
TESTS = "assert double(2) == 4\nassert double(-1) == -2"
DOUBLE = "def double(x):\n    return 2 * x\n"
needs_walls = pytest.mark.skipif(walls.reason() is not None, reason="no walls on this machine")


def test_the_rewards_of_r1_by_hand():
    """Right and in format: 1 + 1; with all words Latin 1 more. Wrong in format 1, right bare 0."""
    assert rules.score(rules.R1_ZERO, ASKED, GOOD, "4").total == 2
    found = rules.score(rules.R1_REASONING, ASKED, GOOD, "4")
    assert (found.total, found.parts) == (3, {"math": 1, "format": 1, "language": 1})
    assert rules.score(rules.R1_ZERO, ASKED, GOOD, "5").total == 1
    assert rules.score(rules.R1_ZERO, ASKED, "4", "4").total == 0
    assert rules.score({"math": 0.5, "format": 0.25}, ASKED, GOOD, "4").total == 0.75


@pytest.mark.parametrize("broken", [lambda *_: 1 / 0, lambda *_: math.nan, lambda *_: math.inf,
                                    lambda *_: "much", lambda *_: None])
def test_a_rule_that_fails_gives_zero_is_named_and_counted(broken, monkeypatch):
    monkeypatch.setitem(rules.RULES, "broken", broken)
    weights = {"format": 1.0, "broken": 5.0}
    found = rules.score_all(weights, [(ASKED, GOOD, "4"), (ASKED, "", "4")])
    assert [one.total for one in found] == [1, 0]
    assert all(one.parts["broken"] == 0 and one.faults["broken"] for one in found)
    assert rules.faults(found) == {"broken": 2}


def test_a_rule_that_does_not_end_is_stopped_and_counted_and_others_are_scored(monkeypatch):
    def endless(prompt, text, reference):
        while text == "loop":
            pass
        return 1.0

    monkeypatch.setitem(rules.RULES, "endless", endless)
    monkeypatch.setattr(rules, "SECONDS", 0.3)
    before = threading.active_count()
    found = rules.score_all({"endless": 1.0}, [(ASKED, text, "4") for text in ("a", "loop", "b")])
    assert [one.total for one in found] == [1, 0, 1]
    assert found[1].faults["endless"].startswith("TimeoutError: it took more than 0.3 s")
    until = time.monotonic() + 20
    while threading.active_count() > before and time.monotonic() < until:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_the_machines_faults_are_not_the_outputs(monkeypatch):
    def refuses(*_):
        raise UserError("no sandbox here; use another machine")
    monkeypatch.setitem(rules.RULES, "code", refuses)
    with pytest.raises(UserError, match="another machine"):
        rules.score({"code": 1.0}, ASKED, GOOD, "4")


def test_unknown_rules_and_weights_are_refused():
    with pytest.raises(UserError, match=r"'mat', did you mean math"):
        rules.score_all({"mat": 1.0}, [])
    with pytest.raises(UserError, match=r"choose from boxed, code"):
        rules.find("zzz")
    with pytest.raises(UserError, match="weight of reward rule math is nan"):
        rules.score({"math": math.nan}, ASKED, GOOD, "4")


@pytest.mark.parametrize(("prompt", "text", "share"), [
    (ASKED, "two and two", 1), (ASKED, HAN, 0), (HAN, HAN, 1), (HAN, "two and two", 0),
    (ASKED, f"<think>one two {HAN}</think><answer>{HAN}</answer>", 2 / 5),
    (ASKED, "tw\u043e and two", 2 / 3),  # a Cyrillic o
    (ASKED, "\u0434\u0432\u0430 and two", 2 / 3), (ASKED, "caf\u00e9 cafe\u0301", 1),
    (ASKED, "pre\u0301ve\u0301nir " + HAN[0], 1 / 2),
    (ASKED, "", 0), (ASKED, "8 + 6 = 14", 0), ("8+6=", "two", 0), (ASKED, "x y z two", 1),
    (HAN, "\\frac{x}{y} \\boxed{" + HAN + "}", 1), (ASKED, "<think></think>two", 0),
])
def test_language_is_the_share_of_words_in_the_prompts_script(prompt, text, share):
    assert language.language(prompt, text, "") == pytest.approx(share)


def test_overlong_is_a_line_between_two_lengths():
    """Limit 100, margin 20: 0 to 80, -1/4 at 85, -1 at 100 and above."""
    assert [length.overlong(n, 100, 20) for n in (0, 80, 85, 100, 900)] == [0, 0, -0.25, -1, -1]
    with pytest.raises(UserError, match="use 1 to 100"):
        length.overlong(5, 100, 0)


@pytest.mark.parametrize(("text", "block"), [
    (f"So:\n```python\n{DOUBLE}```\nDone.", DOUBLE), (f"```\n{DOUBLE}```", DOUBLE),
    (f"```python\nx\n``` or\n```py\n{DOUBLE}```", DOUBLE), (DOUBLE, None), ("", None),
    (f"```python\n{DOUBLE}", None), ("```rust\nfn\n```", None), ("```x```", None),
])
def test_the_program_is_the_last_closed_block(text, block):
    assert code.block(text) == block


@needs_walls
def test_code_earns_if_the_sandbox_passes_it():
    def reward(program, before=""):
        return code.code("", f"{before}```python\n{program}```", TESTS)
    assert reward(DOUBLE) == 1
    assert reward(DOUBLE, "<think>```python\nx=1\n```</think>") == 1
    assert reward(DOUBLE.replace("2", "3")) == 0
    assert reward("class Same:\n    __eq__ = lambda *_: True\ndouble = lambda x: Same()\n") == 0
    assert reward("import sys; sys.exit(0)\n") == 0
    assert code.code("", f"<think>```python\n{DOUBLE}```</think>", TESTS) == 0
    assert reward("#" * (1 << 17) + "\n" + DOUBLE) == 0


def test_an_empty_answer_is_never_right_and_an_empty_reference_is_a_fault():
    answering = dict.fromkeys(("exact", "colon", "number", "boxed", "math"), 1.0)
    for text in ("<answer></answer>", "<think>a</think><answer> </answer>", ":", "\\boxed{}", ""):
        for reference in ("", " ", "\\boxed{}"):
            found = rules.score(answering, ASKED, text, reference)
            assert found.total == 0
        assert rules.score(answering, ASKED, text, "").faults["colon" if text == ":" else "number"]
        assert rules.score({"format": 1.0, "language": 1.0}, ASKED, GOOD, "").faults == {}


PIECES = [*sections.TAGS, "\\boxed{", "\\boxed ", "\\fbox", "}", "{", "\\", "$", "4", "3", ":",
          " or ", "\\frac", "\\frac{", "\\sqrt", "=", "/", "#### ", "\n", ",", ".", "-", "e", "```",
          "\\text{ ", "python\n", "\u0664", "x", "(", ")", "+", "%", "\ud800", "\0", HAN]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=25).map("".join)


@given(TEXTS, st.sampled_from([ASKED, "<think>"]),
       st.sampled_from(["4", "\\frac{1}{2}", "3,5>8", "x=4"]))
@settings(max_examples=400, deadline=None, derandomize=True)
def test_no_text_breaks_a_rule_or_earns_without_the_answer(text, prompt, reference):
    every = {name: 1.0 for name in rules.RULES if name not in ("code", "math", "countdown")}
    found = rules.score(every, prompt, text, reference)
    assert found.faults == {}
    assert all(0 <= part <= 1 for part in found.parts.values())
    if reference == "4" and "4" not in text:
        assert not any(found.parts[name] for name in ("exact", "colon", "number", "boxed"))


GIANTS = ["<think>" * 60_000, "<answer>4</answer>" * 30_000, "\\boxed{" * 60_000,
          "\\boxed{4}" * 30_000 + "\\boxed{5}", "```" * 90_001, "\\text{" * 60_000,
          "<answer>" + "\\text{" * 60_000 + "</answer>", "\\boxed{" + "4" * 300_000 + "}",
          "\\boxed{" + "\\sqrt\\frac" * 30_000 + "}", "#### " * 60_000, "a" * 300_000,
          "#### " + " " * 300_000, HAN * 90_000, ":" * 300_000, "\ud800" * 30_000, "{" * 300_000,
          "<think>a</think>" + "= a" * 90_000, "\\boxed{" + "=a" * 120_000 + "}", "\0" * 300_000,
          "<think>a</think><answer>" + "(" * 150_000 + "</answer>", "e\u0301" * 90_000]


@pytest.mark.parametrize("prompt", [ASKED, "<think>"])
def test_giants_earn_nothing_in_linear_time(prompt):
    """Hundreds of thousands of characters each: a rule of quadratic time does not end here."""
    every = {name: 1.0 for name in rules.RULES if name not in ("code", "language", "format")}
    for text in GIANTS:
        found = rules.score(every, prompt, text, "4")
        assert (found.total, found.faults) == (0, {}), text[:40]
        filled = "</think><answer>((" in text and prompt == ASKED
        assert rules.in_format(prompt, text, "4") == filled
        assert len(code.block(text) or "") < len(text)
        assert 0 <= language.language(prompt, text, "4") <= 1
