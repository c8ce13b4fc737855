"""A file that is missing, damaged or of other fields is refused by its name, line and field."""

import gzip
import json

import pytest

from dsjax.errors import UserError
from dsjax.evaluate.evaluation import TASKS
from dsjax.evaluate.tasks import task as tasks

GOOD = {"question": "1 + 1?", "answer": "#### 2"}


def write(folder, name, *lines):
    (folder / name).write_text("".join(
        (line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))


def ask(folder, name="gsm8k", shots=0, limit=None):
    return tasks.items(TASKS[name], folder, shots, limit)


def test_a_missing_file_is_named_with_where_it_comes_from(tmp_path):
    with pytest.raises(UserError, match=r"gsm8k-test\.jsonl.*openai/grade-school-math"):
        ask(tmp_path)
    with pytest.raises(UserError, match="is not a folder"):
        ask(tmp_path / "nowhere")


@pytest.mark.parametrize(("line", "said"), [
    ('{"question": "half', "line 2 is not JSON"),
    ("[1, 2]", "line 2 is list"),
    ({"question": "a"}, "line 2 has no field 'answer', its fields are question"),
    ({"question": "a", "answer": 3}, "line 2 has 3 in field 'answer', which is not a text"),
    ({"question": "a", "answer": "  "}, "line 2 has an empty text in field 'answer'"),
    ({"question": "a", "answer": "2 + 2\n#### "}, "line 2 has nothing behind the last ####"),
    ({"question": "a", "answer": "2 + 2\n####"}, "line 2 has nothing behind the last ####"),
    ('{"question": "a", "answer": "\\ud800"}', "line 2 has half of a surrogate pair"),
])
def test_a_bad_line_is_named(line, said, tmp_path):
    write(tmp_path, "gsm8k-test.jsonl", GOOD, line)
    with pytest.raises(UserError, match=said):
        ask(tmp_path)


@pytest.mark.parametrize(("task", "name", "row", "said"), [
    ("arc", "arc-challenge-test", {"question": "a", "answerKey": "E", "choices": {
        "text": ["x", "y"], "label": ["A", "B"]}}, "answerKey 'E'"),
    ("arc", "arc-challenge-test", {"query": "a", "choices": ["x", "y"], "gold": 2}, "below 2"),
    ("arc", "arc-challenge-test", {"query": "a", "choices": ["x", ""], "gold": 0}, "empty text"),
    ("hellaswag", "hellaswag-val", {"activity_label": "a", "ctx_a": "b", "ctx_b": "", "endings": [
        "x", "[y]"], "label": "0"}, "nothing but marks"),
    ("hellaswag", "hellaswag-val", {"activity_label": "a", "ctx_a": "b", "ctx_b": "", "endings": [
        "x", "y"], "label": ""}, "has '' in field 'label'"),
    ("lambada", "lambada-test", {"text": "word"}, "no word after a blank"),
    ("mmlu", "mmlu-test", {"subject": "chess", "question": "a", "choices": list("wxyz"),
                           "answer": 0}, "subject 'chess'"),
    ("mmlu", "mmlu-test", {"subject": "virology", "question": "a", "choices": list("vwxyz"),
                           "answer": 0}, "5 choices"),
    ("math500", "math500", {"problem": "a", "solution": "b"}, "no .boxed answer"),
    ("math500", "math500", {"problem": "a", "solution": r"\boxed{ }"}, "no .boxed answer"),
    ("mbpp", "mbpp", {"task_id": 11, "text": "a", "code": "b", "test_list": ["x"]}, "at least 3"),
    ("mbpp", "mbpp", {"task_id": 9, "text": "a", "code": "b", "test_list": ["x"] * 3},
     "none that mbpp asks"),
    ("humaneval", "HumanEval", {"task_id": "a", "prompt": "b", "test": "c"}, "'entry_point'"),
])
def test_rows_that_ask_nothing_are_refused(task, name, row, said, tmp_path):
    write(tmp_path, f"{name}.jsonl", row)
    with pytest.raises(UserError, match=said):
        ask(tmp_path, task)


def test_two_files_of_one_name_are_refused(tmp_path):
    write(tmp_path, "gsm8k-test.jsonl", GOOD)
    (tmp_path / "gsm8k-test.jsonl.gz").write_bytes(gzip.compress(b"{}"))
    with pytest.raises(UserError, match=r"gsm8k-test.jsonl and gsm8k-test.jsonl.gz.*leave one"):
        ask(tmp_path)


def test_an_empty_file_is_refused(tmp_path):
    write(tmp_path, "gsm8k-test.jsonl", "", " ")
    with pytest.raises(UserError, match="holds no rows"):
        ask(tmp_path)


def test_a_packed_file_is_read_and_a_damaged_one_refused(tmp_path):
    packed = gzip.compress(json.dumps(GOOD).encode() + b"\n")
    path = tmp_path / "gsm8k-test.jsonl.gz"
    path.write_bytes(packed)
    assert [one.prompt for one in ask(tmp_path)] == ["Question: 1 + 1?\nAnswer:"]
    path.write_bytes(packed[:-9])
    with pytest.raises(UserError, match="is damaged"):
        ask(tmp_path)


def test_parquet_is_read_where_its_library_is(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    (tmp_path / "gsm8k" / "main").mkdir(parents=True)
    parquet.write_table(pyarrow.Table.from_pylist([GOOD, {"question": "b", "answer": "#### 1"}]),
                        tmp_path / "gsm8k" / "main" / "test-00000-of-00001.parquet")
    assert [one.question.id for one in ask(tmp_path)] == ["line 1", "line 2"]


def test_parquet_without_its_library_is_refused_by_it(tmp_path):
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        pass
    else:
        pytest.skip("pyarrow is installed")
    (tmp_path / "gsm8k-test.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"gsm8k-test\.parquet is parquet, which needs pyarrow"):
        ask(tmp_path)


def test_more_examples_than_there_are_and_examples_of_a_task_without_are_refused(tmp_path):
    write(tmp_path, "gsm8k-test.jsonl", GOOD)
    write(tmp_path, "gsm8k-train.jsonl", GOOD, GOOD)
    with pytest.raises(UserError, match=r"has 2 examples, and gsm8k is to show 3"):
        ask(tmp_path, shots=3)
    write(tmp_path, "lambada-test.jsonl", {"text": "a word"})
    with pytest.raises(UserError, match="--shots 1: lambada has no examples"):
        ask(tmp_path, "lambada", 1)


def test_a_limit_is_of_each_subject(tmp_path):
    row = {"question": "a", "choices": list("wxyz"), "answer": 0}
    write(tmp_path, "mmlu-test.jsonl", *[
        {**row, "subject": subject} for subject in ("virology", "virology", "anatomy", "virology")])
    found = ask(tmp_path, "mmlu", limit=1)
    assert [one.question.group for one in found] == ["virology", "anatomy"]
    assert [one.index for one in found] == [0, 2]  # as without a limit
