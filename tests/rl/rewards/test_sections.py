"""Tags make one reasoning and one answer or none, and boxes close."""

import pytest

from dsjax.rl.rewards import sections

GOOD = "<think>2+2 is 4</think><answer>4</answer>"
SPACED = "  <think>\na\n</think>\n\n<answer>\n4\n</answer>\n"
BAD = ["", "4", "<think></think><answer>4</answer>", "<think> </think><answer>4</answer>",
       "<think>a</think><answer> </answer>", "<think>a</think>", "<answer>4</answer>",
       "<answer>4</answer><think>a</think>", "<think>a<answer>4</answer></think>",
       "<think>a</think>b<answer>4</answer>", "b" + GOOD, GOOD + "b", GOOD + GOOD,
       "<think>a</think><answer>4</answer><answer>4</answer>",
       "<think><think>a</think></think><answer>4</answer>", "<think>a</think></answer>4<answer>",
       "</think>a<think><answer>4</answer>", "<Think>a</Think><Answer>4</Answer>",
       "<think>a</think><answer>4<answer>", "<think >a</think><answer>4</answer>",
       "<think>a</think>" * 2000 + "<answer>4</answer>", "<think>" * 9999,
       "\uff1cthink\uff1e" + GOOD]


def test_the_format_is_both_pairs_once_in_order_and_filled():
    assert sections.is_in_format("", GOOD)
    assert sections.is_in_format("", SPACED)
    assert [text for text in BAD if sections.is_in_format("", text)] == []


def test_a_prompt_that_opens_the_reasoning_counts_as_its_tag():
    rest = GOOD.removeprefix("<think>")
    assert sections.is_in_format("Assistant: <think>\n", rest)
    assert not sections.is_in_format("Assistant:", rest)
    assert not sections.is_in_format("Assistant: <think>\n", GOOD)
    assert not sections.is_in_format("use <think> </think> tags. Assistant:", rest)
    assert sections.answer("<think>", rest) == "4"


@pytest.mark.parametrize(("text", "final", "answer"), [
    (GOOD, "<answer>4</answer>", "4"),
    ("no tags", "no tags", None),
    ("<think>never closed <answer>4</answer>", None, None),
    ("<think><answer>4</answer></think> so", " so", None),
    ("<think><answer>4</answer></think><answer>5</answer>", "<answer>5</answer>", "5"),
    ("<think>a</think><answer>3</answer><answer>4</answer>",
     "<answer>3</answer><answer>4</answer>", None),
    ("<think>a</think><answer><answer>3</answer></answer>",
     "<answer><answer>3</answer></answer>", None),
    ("</think><think>", None, None),
    ("<think>a</think>b</think><answer>4</answer>", None, None),
])
def test_the_answer_stands_after_the_reasoning_once(text, final, answer):
    assert sections.final("", text) == final
    assert sections.answer("", text) == answer


def test_the_reasoning_is_what_stands_in_its_tags():
    assert sections.reasoning("", GOOD) == "2+2 is 4"
    assert sections.reasoning("", "<think>open") == "open"
    assert sections.reasoning("<think>", "open") == "open"
    assert sections.reasoning("", "plain") == "plain"
    assert sections.reasoning("", "<think></think>plain") == ""


@pytest.mark.parametrize(("text", "boxes"), [
    (r"\boxed{3}", ["3"]), (r"\boxed {3} and \fbox{4}", ["3", "4"]),
    (r"\boxed{\frac{1}{2}}", [r"\frac{1}{2}"]), (r"\boxed{\boxed{3}}", [r"\boxed{3}"]),
    (r"\boxed{3", []), (r"\boxed{\boxed{3}", []), (r"3}\boxed{4}", ["4"]), (r"\boxed3", []),
    (r"\boxed{\{1,2\}}", [r"\{1,2\}"]), (r"{\boxed{3}}", ["3"]), (r"\boxed{}", [""]), ("", []),
    (r"\boxed{a\\}", [r"a\\"]), ("\\boxed{" * 100_000, []), ("}" * 100_000 + r"\boxed{3}", ["3"]),
    ("\\boxed{" * 50_000 + "3" + "}" * 50_000, ["\\boxed{" * 49_999 + "3" + "}" * 49_999]),
])
def test_boxes_are_the_outermost_that_close(text, boxes):
    assert sections.boxes(text) == boxes
