"""MBPP: short functions written from a sentence and three checks, which are shown.

lm-evaluation-harness 0.4.13, lm_eval/tasks/mbpp/mbpp.yaml and utils.py, version 1.0: the 500
questions with task_id 11 to 510 of the full file, after those with task_id 2, 3 and 4 as examples;
the program is what the model writes before [DONE], followed by the three checks.
"""

from dsjax.evaluate.grade import code
from dsjax.evaluate.tasks.rows import Row, Split
from dsjax.evaluate.tasks.task import HARNESS, Generation, Question, Task, Verdict

FROM = ("github.com/google-research/google-research (mbpp/mbpp.jsonl), or google-research-datasets/"
        "mbpp on the Hugging Face hub")
TEST, SHOWN = range(11, 511), range(2, 5)


def question(row: Row) -> Question:
    """A row of `task_id`, `text`, `code` and `test_list`."""
    checks = row.texts("test_list", 3)
    text = (f"You are an expert Python programmer, and here is your task: {row.text('text')} Your "
            "code should pass these tests:\n\n" + "\n".join(checks[:3]) + "\n[BEGIN]\n")
    return Question(row.name("task_id"), text, f"{row.text('code')}\n[DONE]",
                    facts={"tests": checks[:3]})


def grade(question: Question, text: str) -> dict[str, Verdict]:
    """Run the program with the checks behind it."""
    passed = code.passed(code.mbpp(text, (), question.facts["tests"]))
    return {"pass@1": Verdict(passed, "")}


TASK = Task(
    name="mbpp",
    source=f"{HARNESS}, mbpp, version 1.0",
    kind="generated",
    metrics=("pass@1",),
    question=question,
    test=Split(("mbpp", "mbpp-full", "mbpp/mbpp", "mbpp-test",
                "mbpp/full/test-00000-of-00001"), FROM),
    is_asked=lambda row: row.whole("task_id") in TEST,
    shots=3,
    examples=Split(("mbpp", "mbpp-full", "mbpp/mbpp", "mbpp-prompt",
                    "mbpp/full/prompt-00000-of-00001"), FROM),
    is_example=lambda row: row.whole("task_id") in SHOWN,
    sampler="first",
    delimiter="",
    generation=Generation(grade, ("[DONE]",), is_code=True),
)
