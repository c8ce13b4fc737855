"""Verdicts on HumanEval's and MBPP's programs are those of the references that run them whole."""

import gzip
import json
from pathlib import Path

import pytest

from dsjax.evaluate.grade import code, sandbox
from dsjax.evaluate.grade.sandbox import Limits
from tests.evaluate.grade.processes import adopting, children

DATA = Path(__file__).with_name("HumanEval.jsonl.gz")
ROWS = [json.loads(line) for line in gzip.decompress(DATA.read_bytes()).decode().splitlines()]
LIMITS = Limits(seconds=60.0)


def endings(programs, workers=2):
    return [outcome.ending for outcome in sandbox.run_all(programs, LIMITS, workers)]


def program(row, completion):
    return code.human_eval(row["prompt"], completion, row["test"], row["entry_point"])


@pytest.mark.slow
@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.exhaustive)])
def test_all_164_solutions_pass(every):
    assert len(ROWS) == 164
    rows = ROWS[::every]
    with adopting():
        before = children()
        found = endings([program(row, row["canonical_solution"]) for row in rows], workers=8)
        assert children() <= before
    assert [row["task_id"] for row, end in zip(rows, found, strict=True) if end != "end"] == []


def test_no_solution_passes_anothers_test():
    rows = ROWS[:12]
    mixed = [program(one, other["canonical_solution"])
             for one, other in zip(rows, rows[1:] + rows[:1], strict=True)]
    found = endings([*mixed, *(program(row, "    return None\n") for row in rows)])
    assert set(found) == {"raised"}


def test_a_test_uses_helpers_of_its_prompt():
    """poly of HumanEval/32 is the prompt's own, whatever the completion makes of it."""
    (row,) = (row for row in ROWS if row["task_id"] == "HumanEval/32")
    cheat = "    return 0.5\ndef poly(xs, x):\n    return 0.0\n"
    assert endings([program(row, cheat)]) == ["raised"]


def test_code_for_main_does_not_run():
    """As in openai/human-eval and code_eval, whose scope has no name."""
    row = ROWS[0]
    after = "\nif __name__ == '__main__':\n    raise SystemExit(input())\n"
    assert endings([program(row, row["canonical_solution"] + after)]) == ["end"]


MBPP = [
    ("def f(x): return x + 1", [], ["assert f(1) == 2", "assert f(2) == 3"], True),
    ("def f(x): return x", [], ["assert f(1) == 1", "assert f(2) == 3"], False),
    ("import re\ndef f(x): return set(x)", [], ["assert f('aba') == {'a', 'b'}"], True),
    ("def f(x): return (c for c in x)", [], ["assert list(f('aba')) == ['a', 'b', 'a']"], True),
    ("def f(x): return iter([x])", [], ["assert list(map(abs, f(-1))) == [1]"], True),
    ("def sum(a, b): return a * b", [], ["assert sum(2, 3) == 6"], True),
    ("def f(x): return x\ndef set(x): return 0", [], ["assert set(f('a')) == set(['b'])"], False),
    ("def f(x): return x\ndef sorted(x): return 0", [], ["assert sorted(f('a')) == sorted(['b'])"],
     False),
    ("class Pair:\n    def __init__(self, a, b): self.a, self.b = a, b\n"
     "def f(pairs): return [p.a + p.b for p in pairs]", [],
     ["assert f([Pair(1, 2), Pair(3, 4)]) == [3, 7]"], True),
    ("class Node:\n    def __init__(self, x): self.x, self.left = x, None\n"
     "def f(n): return 1 + f(n.left) if n else 0", ["root = Node(1)", "root.left = Node(2)"],
     ["assert f(root) == 2", "assert root.left.x == 2"], True),
    ("def f(x, kind): return [i for i in x if not isinstance(i, kind)]", [],
     ["assert f((1, 'a'), str) == [1]"], True),
    ("def f(x): return complex(x, 1)", ["import math"],
     ["assert math.isclose(f(2).real, 2, rel_tol=0.1)"], True),
    ("import sys\ndef f(x): return sys.getsizeof(x)", [], ["assert f((1,)) == sys.getsizeof((1,))"],
     True),
    ("def array(x): return sorted(x)", [], ["assert array('ba') == ['a', 'b']"], True),
    ("import collections\ndef f(x): return collections.Counter(x)", [],
     ["assert f('aab') == {'a': 2, 'b': 1}"], True),
    ("def f(x):\n    if x < 0: raise ValueError(x)\n    return x", [],
     ["try:\n    f(-1)\nexcept ValueError as error:\n    assert str(error).endswith('-1')\n"
      "else:\n    assert False"], True),
    ("def f(x): return float('nan')", [], ["assert f(1) == f(1)"], False),
    ("def f(*x, **y): return x, y", [], ["assert f(1, k=[2.5]) == ((1,), {'k': [2.5]})"], True),
    ("f = lambda x: 10 ** 5000 + x", [], ["assert f(1) == 10 ** 5000 + 1"], True),
    ("def g(x): return x", [], ["assert f(1) == 1"], False),
    ("def f(x): return x", [], ["assert f(1) =="], False),
]


def test_mbpps_verdicts_are_those_of_one_text():
    """Each is also run whole, here, as lm-evaluation-harness's code_eval does; but for two cheats
    that pass there."""
    found = endings([code.mbpp(text, before, tests) for text, before, tests, _ in MBPP])
    assert [end == "end" for end in found] == [right for *_, right in MBPP]
    whole = []
    for text, before, tests, _ in MBPP:
        try:
            exec("\n".join([text, *before, *tests]), {})
        except BaseException:
            whole.append(False)
        else:
            whole.append(True)
    differ = [text for (text, *_, right), one in zip(MBPP, whole, strict=True) if right != one]
    assert [text.rsplit("def ")[-1][:6] for text in differ] == ["set(x)", "sorted"]


def test_passed_is_the_verdict():
    assert code.passed(program(ROWS[2], ROWS[2]["canonical_solution"]))
    assert not code.passed(program(ROWS[2], "    return 0\n"))
