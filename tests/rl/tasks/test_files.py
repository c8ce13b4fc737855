"""Problems of files: GSM8K's and MATH's forms, order and splits, and what is refused by line."""

import dataclasses
import gzip
import json

import pytest

from dsjax.errors import UserError
from dsjax.report.metrics import read_metrics
from dsjax.rl.rewards import rules
from dsjax.rl.tasks import catalog, files
from dsjax.rl.tasks.task import exam, questions
from tests.rl import small

GSM8K = {"question": "Tom has 3 apples and buys 1,200. How many?",
         "answer": "3+1200=<<3+1200=1203>>1203\n#### 1,203"}
MATH = {"problem": "What is $\\frac12+1$?", "solution": "It is \\boxed{\\frac{3}{2}}.",
        "answer": "3/2"}
PLAIN = {"prompt": "2+2=", "answer": "4"}


def written(folder, rows, name="set.jsonl"):
    path = folder / name
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    return str(path)


@pytest.mark.parametrize(("row", "rule", "answer", "right", "wrong"), [
    (GSM8K, "number", "1,203", "so\n#### 1203", "so\n#### 1204"),
    (MATH, "math", "\\frac{3}{2}", "\\boxed{1.5}", "\\boxed{1/2}"),
    (PLAIN, "exact", "4", "<answer>4</answer>", "<answer>5</answer>"),
], ids=["gsm8k", "math", "plain"])
def test_each_form_gives_a_question_and_an_answer_that_its_rule_reads(
        row, rule, answer, right, wrong, tmp_path):
    task = catalog.find(written(tmp_path, [row], "set.jsonl.gz"), "question", "train")
    (one,) = questions(task, 8, (0,), 0, 1)
    asked = next(row[name] for name in ("question", "problem", "prompt") if name in row)
    assert one.prompt == f"Question: {asked}\nAnswer:"
    assert one.reference == answer
    for text, value in ((right, 1.0), (wrong, 0.0)):
        assert rules.score({rule: 1.0}, one.prompt, text, one.reference).total == value


def test_a_template_of_tags_does_not_open_the_reasoning(tmp_path):
    task = catalog.find(written(tmp_path, [PLAIN]), "r1_zero", "train")
    (one,) = questions(task, 8, (0,), 0, 1)
    assert "User: 2+2=\n" in one.prompt
    text = "<think>2 and 2</think><answer>4</answer>"
    assert rules.score({"exact": 1.0, "format": 1.0}, one.prompt, text, "4").total == 2
    assert rules.score({"format": 1.0}, one.prompt, text[7:], "4").total == 0


def test_an_epoch_has_each_question_once_and_the_next_another_order(tmp_path):
    path = written(tmp_path, [{"prompt": f"{n}=", "answer": str(n)} for n in range(60)])
    task = catalog.find(path)
    held = {one.prompt for one in exam(task, 8, 5, 0)}
    seen = [one.prompt for step in range(40) for one in questions(task, 8, (3,), step, 7)]
    count = len(set(seen))
    assert 45 <= count < 60
    assert not held & set(seen)
    first, second = seen[:count], seen[count : 2 * count]
    assert sorted(first) == sorted(second) == sorted(set(seen))
    assert first != second
    assert seen[7:14] == [one.prompt for one in questions(task, 8, (3,), 1, 7)]
    assert seen[:count] != [one.prompt for one in questions(task, 8, (4,), 0, count)]


def test_an_exam_may_have_all_questions_of_a_file(tmp_path):
    """Each once; drawn until all have come, the last of 300 would be missed by 1 seed in 28."""
    path = written(tmp_path, [{"prompt": f"{n}=", "answer": str(n)} for n in range(300)])
    task = catalog.find(path, split="held_out")
    for seed in range(60):
        assert len({one.prompt for one in exam(task, 8, 300, seed)}) == 300
    assert [one.prompt for one in exam(task, 8, 9, 0)] == [
        one.prompt for one in exam(task, 8, 9, 0)]
    assert exam(task, 8, 9, 0) != exam(task, 8, 9, 1)
    with pytest.raises(UserError, match=r"has 300 held-out problems, and 301"):
        exam(task, 8, 301, 0)


def test_a_line_with_prompt_answer_and_solution_is_no_problem_of_math(tmp_path):
    task = catalog.find(written(tmp_path, [PLAIN | {"solution": "two and two"}]), split="train")
    (one,) = questions(task, 8, (0,), 0, 1)
    assert (one.prompt, one.trace, one.answer) == ("2+2=", "two and two", "4")


def test_equal_questions_share_a_split(tmp_path):
    rows = [{"prompt": f" What  is {n}?", "answer": str(n)} for n in range(50)]
    rows += [{"prompt": f"what is {n}?", "answer": str(n)} for n in range(50)]
    task = catalog.find(written(tmp_path, rows))
    taught = {one.answer for one in questions(task, 8, (0,), 0, 100)}
    assert not taught & {one.answer for one in exam(task, 8, 4, 0)}


def test_a_file_of_the_exam_leaves_all_others_to_training(tmp_path):
    train = written(tmp_path, [{"prompt": f"{n}=", "answer": "1"} for n in range(30)])
    asked = written(tmp_path, [{"prompt": f"-{n}=", "answer": "1"} for n in range(9)], "e.jsonl")
    taught = questions(catalog.find(train, split="train"), 8, (0,), 0, 30)
    assert len({one.prompt for one in taught}) == 30
    held = exam(catalog.find(asked, split="held_out"), 8, 9, 0)
    assert {one.prompt[0] for one in held} == {"-"}


@pytest.mark.parametrize(("rows", "said"), [
    ([PLAIN, {"question": "q", "answer": "no mark"}], r"line 2.*#### "),
    ([{"question": "q", "answer": "5\n#### "}], r"line 1.*#### "),
    ([{"problem": "p", "solution": "no box"}], r"line 1.*boxed"),
    ([{"prompt": "p", "answer": "  "}], r"line 1.*empty text in field 'answer'"),
    ([{"prompt": 3, "answer": "x"}], r"line 1.*3 in field 'prompt', which is not a text"),
    ([{"text": "x"}], r"line 1.*no field 'question'"),
    ([[1]], r"line 1.*list"),
    ([], r"no rows"),
], ids=range(8))
def test_a_line_that_cannot_be_asked_is_refused_by_its_number(rows, said, tmp_path):
    with pytest.raises(UserError, match=said):
        files.read(written(tmp_path, rows), "plain")


def test_names_that_are_none_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"no file .*none\.jsonl"):
        catalog.find(str(tmp_path / "none.jsonl"))
    with pytest.raises(UserError, match=r"did you mean boxed.*choose from plain"):
        catalog.find(written(tmp_path, [PLAIN]), "boxd")
    with pytest.raises(UserError, match=r"no task 'gsm8k'.*\.jsonl"):
        catalog.find("gsm8k")


def test_a_run_of_a_file_needs_a_model(tmp_path):
    path = written(tmp_path, [{"prompt": f"{n}=", "answer": "1"} for n in range(99)])
    with pytest.raises(UserError, match=r"no text to pre-train.*--init-from"):
        small.teach(small.with_rl(task=path, eval_prompts=3), tmp_path / "run")
    few = dataclasses.replace(small.with_rl(task=path), init_from=str(tmp_path))
    with pytest.raises(UserError, match=r"held-out problems, and 16 are asked for"):
        small.teach(few, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.exhaustive  # tests/rl/test_resume.py has the loop by default
def test_a_base_is_taught_from_a_file(whole, tmp_path):
    rows = [{"prompt": f"{a}+{b}+{c}=", "answer": str((a + b + c) % 10)}
            for a in range(10) for b in range(10) for c in range(5)]
    run = small.with_rl(task=written(tmp_path, rows), steps=1)
    said = small.teach(dataclasses.replace(run, init_from=str(whole / "base")), tmp_path / "run")
    assert "step 1: held out" in said
    assert [one["step"] for one in read_metrics(tmp_path / "run" / "metrics.jsonl", "train")] == [1]
    asked = (tmp_path / "run" / "samples" / "step-000001.jsonl").read_text().splitlines()
    assert {json.loads(line)["prompt"] for line in asked} <= {row["prompt"] for row in rows}
    written(tmp_path, rows[1:])
    files.read.cache_clear()  # another process reads the file again
    more = dataclasses.replace(run, rl=dataclasses.replace(run.rl, steps=2),
                               init_from=str(whole / "base"))
    with pytest.raises(UserError, match=r"other problems than when this run began.*put the former"):
        small.teach(more, tmp_path / "run")
