"""Problems follow from a seed, solutions are right, no split sees the other's problems."""

import itertools
import re

import numpy as np
import pytest

from dsjax.errors import UserError
from dsjax.rl.rewards import rules
from dsjax.rl.tasks import catalog, countdown, digits
from dsjax.rl.tasks.task import CHARACTERS, Problem, Task, documents, exam, is_held_out, problems

LEVELS = [(task, level) for task in catalog.TASKS.values()
          for level in (task.levels[0], task.levels[len(task.levels) // 2], task.levels[-1])]
EACH = pytest.mark.parametrize(("task", "level"), LEVELS, ids=lambda one: getattr(one, "name", one))


def some(task, level, count, split="train", seed=0):
    return list(itertools.islice(problems(task, level, split, seed), count))


@EACH
def test_a_seed_gives_the_same_problems_and_another_others(task, level):
    first = some(task, level, 20)
    assert first == some(task, level, 20)
    assert first != some(task, level, 20, seed=1)
    assert first != some(task, level, 20, "held_out")


@EACH
def test_no_problem_is_in_both_splits_whatever_the_seeds(task, level):
    train = {one.key for seed in range(3) for one in some(task, level, 100, seed=seed)}
    held = {one.key for seed in range(3) for one in some(task, level, 20, "held_out", seed)}
    assert not train & held
    assert not any(is_held_out(task, key) for key in train)


def test_problems_that_give_each_other_away_share_a_split():
    """Operands in another order, and numbers at another level, have one key."""
    for name in ("sum", "sorting"):
        task, keys = catalog.TASKS[name], {}
        for one in some(task, 3, 500):
            keys.setdefault("".join(sorted(re.sub(r"\D", "", one.prompt))), set()).add(one.key)
        assert all(len(found) == 1 for found in keys.values())
        assert len(keys) < 300  # some came again in another order
    for name in ("addition", "reversed_addition", "multiplication"):
        for one in some(catalog.TASKS[name], 2, 200):
            a, b = sorted(map(int, (part[::-1] if "rev" in name else part
                                    for part in re.split(r"\D", one.prompt[:-1]))))
            assert one.key == (a, b)


def test_the_split_is_the_same_on_every_machine():
    """A hash that Python does not salt; runs of other versions must not train on an exam."""
    held = [(a, b) for a in range(10) for b in range(a, 10) if is_held_out(digits.SUM, (a, b))]
    assert held == [(0, 0), (1, 6), (2, 5), (2, 9), (3, 6), (5, 7), (7, 9)]


def test_about_a_tenth_is_held_out():
    """Of n keys n/10 +- 5 sigma."""
    for task, level in ((digits.SUM, 8), (catalog.TASKS["multiplication"], 4)):
        rng = np.random.default_rng(0)
        keys = {task.draw(rng, level).key for _ in range(3000)}
        count = sum(is_held_out(task, key) for key in keys)
        assert abs(count - len(keys) / 10) < 5 * np.sqrt(0.09 * len(keys))


@EACH
def test_every_response_earns_its_reward_and_a_wrong_one_does_not(task, level):
    for one in some(task, level, 30):
        def reward(text, one=one):
            return rules.score({task.rule: 1.0}, one.prompt, text, one.reference).total
        assert reward(one.short) == reward(one.long) == 1
        assert ":" not in one.prompt + one.trace + one.answer
        for wrong in ("", one.answer, one.trace, one.short + "1", ":" + one.short, one.trace + ":",
                      one.short + one.short):
            assert reward(wrong) == 0
        assert set(one.prompt + one.long) <= set(CHARACTERS)
        assert one.prompt.endswith("=")


def test_the_recipes_form_to_the_character():
    """8 6 5 2 3 0 0 0: sums 8, 14, 19, 21, 24 -> 8 4 9 1 4 4 4 4."""
    trace, answer = digits.running([8, 6, 5, 2, 3, 0, 0, 0], 10)
    assert (trace, answer) == ("8864592134040404", "4")
    one = some(digits.SUM, 8, 1)[0]
    assert re.fullmatch(r"(\d\+){7}\d=", one.prompt)
    assert (len(one.short), len(one.long)) == (2, 18)  # 3 and 19 tokens with the end's


@EACH
def test_answers_and_traces_are_right_by_another_way(task, level):
    for one in some(task, level, 30, seed=2):
        stated = one.prompt.removesuffix("=")
        globals()[f"check_{task.name}"](stated, one, level)


def check_sum(stated, one, level, modulus=10):
    given = [int(digit) for digit in stated.split("+")]
    assert len(given) == level
    assert int(one.answer) == sum(given) % modulus
    assert one.trace[::2] == "".join(map(str, given))
    assert one.trace[1::2] == "".join(str(sum(given[: i + 1]) % modulus) for i in range(level))


def check_parity(stated, one, level):
    check_sum(stated, one, level, 2)


def check_addition(stated, one, level):
    a, b = stated.split("+")
    assert len(a) == len(b) == level
    assert one.answer == str(int(a) + int(b)).zfill(level + 1)
    assert one.trace[0::4] == a[::-1]
    assert one.trace[1::4] == b[::-1]
    assert one.trace[-1] + one.trace[2::4][::-1] == one.answer


def check_reversed_addition(stated, one, level):
    a, b = stated.split("+")
    assert int(one.answer[::-1]) == int(a[::-1]) + int(b[::-1])
    assert (one.trace[0::4], one.trace[1::4]) == (a, b)
    assert one.trace[2::4] + one.trace[-1] == one.answer


def check_multiplication(stated, one, level):
    a, b = map(int, stated.split("*"))
    assert int(one.answer) == a * b
    parts = [re.fullmatch(r"(\d+)\*(\d+)=(\d+),(\d+)", part) for part in one.trace.split(";")]
    rows = [tuple(map(int, part.groups())) for part in parts]
    assert all(x == a and x * y == z for x, y, z, _ in rows)
    assert sum(y for _, y, _, _ in rows) == b
    assert [t for *_, t in rows] == np.cumsum([z for _, _, z, _ in rows]).tolist()


def check_chain(stated, one, level):
    values, so_far = [], stated[0]
    for mark, operand in re.findall(r"([-+*])(\d)", stated[1:]):
        so_far = f"({so_far}{mark}{operand})%10"
        values.append(eval(so_far))
    assert len(values) == level
    assert (one.trace, one.answer) == ("".join(map(str, values)), str(values[-1]))


def check_sorting(stated, one, level):
    given = stated.removesuffix(">")
    assert len(given) == level
    assert one.answer == "".join(sorted(given))
    assert one.trace.split(";") == ["".join(sorted(given[: i + 1])) for i in range(level)]


def check_logic(stated, one, level):
    found = []

    def closed(bracket):
        value = eval(re.sub(r"!(\d)", r"(1-\1)", bracket[1]))
        found.append(str(value))
        return str(value)
    text = stated
    while text.startswith("("):  # the leftmost bracket that holds no other closes first
        text = re.sub(r"\(([^()]*)\)", closed, text, count=1)
    assert len(found) == level
    assert "".join(found) == one.trace
    assert found[-1] == one.answer


def check_countdown(stated, one, level):
    numbers, target = stated.split(">")
    assert len(numbers.split(",")) == level
    assert sorted(re.findall(r"\d+", one.answer)) == sorted(numbers.split(","))
    assert abs(eval(one.answer) - int(target)) < 1e-9
    steps = [step.split("=") for step in one.trace.split(";")]
    assert all(eval(left.replace("/", "//")) == int(right) for left, right in steps)
    assert steps[-1][1] == target


@pytest.mark.parametrize(("answer", "reward"), [
    ("(3+5)*2+1", 1), ("1+2*(5+3)", 1), ("3+5*2+1", 0), ("17", 0), ("3*5+2", 0), ("3*5+2*1", 1),
    ("3*5+2/1", 1), ("3*5+2*1*1", 0), ("35/2*1", 0), ("(3+5)*2+1)", 0), ("((3+5)*2+1", 0), ("", 0),
    ("3+5+2+1+", 0), ("3**5+2+1", 0), ("3//5+2+1", 0), ("-3+5*(2+1)", 0), ("(3+5)*2+1 ", 0),
    ("\uff13*5+2*1", 0), ("9**9**9", 0), ("__import__", 0), ("3*5+2/(1-1)", 0), ("()3*5+2*1", 0),
    ("(" * 90 + "3*5+2*1" + ")" * 90, 1), ("(" * 9999 + "3*5+2*1" + ")" * 9999, 0),
    ("3*5+2*1=17", 0), ("3*5+2*1:3*5+2*1", 0), ("(3*5)(2*1)", 0),
])
def test_countdown_earns_by_value_with_each_number_once(answer, reward):
    assert countdown.countdown("3,5,2,1>17=", f"3*5=15:{answer}", "3,5,2,1>17") == reward


def test_countdown_counts_in_fractions():
    assert countdown.countdown("", ":(8/3)*3", "8,3,3>8") == 1
    assert countdown.countdown("", ":8/(3-8/3)", "3,3,8,8>24") == 1
    assert countdown.countdown("", ":8/(3-8/3)", "3,3,8,8>23") == 0
    assert countdown.countdown("", ":8/3*3+1/3", "8,3,3,1,3>8") == 0


def test_an_exam_has_different_held_out_problems():
    found = exam(digits.SUM, 8, 200, 0)
    assert len({one.prompt for one in found}) == 200
    assert all(is_held_out(digits.SUM, one.key) for one in found)
    with pytest.raises(UserError, match=r"level 2 of sum has \d+ held-out problems, and 500"):
        exam(digits.SUM, 2, 500, 0)


def test_documents_hold_a_share_of_long_responses_of_training_problems():
    """Of 2000, 500 +- 5 sigma of 19.4."""
    texts = list(itertools.islice(documents(digits.SUM, 8, 0.25, 3), 2000))
    long = sum(len(text) > 20 for text in texts)
    assert abs(long - 500) < 97
    assert [text.split("=")[0] + "=" for text in texts] == [
        one.prompt for one in some(digits.SUM, 8, 2000, seed=3)]
    for share, size in ((0.0, 2), (1.0, 18)):
        made = itertools.islice(documents(digits.SUM, 8, share, 3), 50)
        assert {len(text.split("=")[1]) for text in made} == {size}


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(UserError, match="sum has no level 1; choose 2 to 32"):
        problems(digits.SUM, 1, "train", 0)
    with pytest.raises(UserError, match="seed of sum is -1"):
        problems(digits.SUM, 8, "train", -1)
    with pytest.raises(UserError, match="long_share=2"):
        next(documents(digits.SUM, 8, 2, 0))
    with pytest.raises(UserError, match="did you mean parity"):
        catalog.find("party")
    one = Task("one", "", range(1, 2), lambda *_: Problem("1=", "", "1", (1,), "1"))
    split = "train" if is_held_out(one, (1,)) else "held_out"
    with pytest.raises(UserError, match="level 1 of one is too small"):
        next(problems(one, 1, split, 0))
