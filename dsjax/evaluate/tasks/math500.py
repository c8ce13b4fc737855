"""MATH-500: contest problems with an exact answer, asked in one of three forms.

`math500`, the default, is lm-evaluation-harness 0.4.13's hendrycks_math500
(lm_eval/tasks/hendrycks_math, version 1.0): no examples, "Answer:", the text between dollar signs
compared by the MATH paper's normal form. `math500_minerva` is its minerva_math500
(lm_eval/tasks/minerva_math, version 3.1) with four worked examples, which a file brings, as they
are contest problems themselves; of its metrics `math_verify` alone, as its `exact_match` is that of
one version of sympy's parser. `math500_boxed` asks as DeepSeek does (R1's README: step by step, the
answer in a box; V3 report sec. 4.4 greedily, R1 sampled: --preset r1).

`math_verify` is minerva_math's in all three: the whole answer against the whole solution.
"""

from __future__ import annotations

from dsjax.errors import UserError
from dsjax.evaluate.grade import mathematics
from dsjax.evaluate.tasks import latex
from dsjax.evaluate.tasks.rows import Row, Split
from dsjax.evaluate.tasks.task import HARNESS, Generation, Grade, Question, Task, Verdict

FROM = "HuggingFaceH4/MATH-500 on the Hugging Face hub (or github.com/openai/prm800k)"
SHOTS_FROM = ("lm_eval/tasks/minerva_math/utils.py of lm-evaluation-harness, whose four examples "
              "are written as lines of 'problem' and 'solution'")
BOXED = "\nPlease reason step by step, and put your final answer within \\boxed{}."
SECONDS = 5.0
"""Time of one comparison."""


def question(row: Row, before: str = "Problem: ", after: str = "\nAnswer:") -> Question:
    """A row of `problem` and `solution`, whose last box holds the answer."""
    solution = row.text("solution")
    answer = mathematics.boxed(solution) or (row.text("answer") if "answer" in row else None)
    if answer is None or not answer.strip():
        raise UserError(f"{row.where} has no \\boxed answer in field 'solution', and no 'answer'; "
                        "mend the line or take it out")
    return Question(row.name("unique_id"), f"{before}{row.text('problem')}{after}", answer,
                    facts={"solution": solution})


def worked(row: Row) -> Question:
    """As `question`; an example shows its whole solution."""
    asked = question(row, "Problem:\n", "\n\nSolution:")
    return Question(asked.id, asked.text, asked.facts["solution"], facts=asked.facts)


def boxed(row: Row) -> Question:
    """As `question`, asked for a box."""
    return question(row, "", BOXED)


def grade(question: Question, text: str) -> dict[str, Verdict]:
    """Compare what stands between dollar signs."""
    answer = latex.between_dollars(text)
    return _verdicts(question, text, answer) | {
        "exact_match": Verdict(latex.are_equal(answer, question.target), _vote(answer))}


def grade_worked(question: Question, text: str) -> dict[str, Verdict]:
    """Compare the final answer."""
    return _verdicts(question, text, latex.final(text) or "")


def grade_boxed(question: Question, text: str) -> dict[str, Verdict]:
    """Compare what stands in the last box."""
    answer = mathematics.boxed(text)
    is_right = answer is not None and latex.are_equal(answer, question.target)
    return _verdicts(question, text, answer or "") | {
        "exact_match": Verdict(is_right, _vote(answer or ""))}


def _verdicts(question: Question, text: str, answer: str) -> dict[str, Verdict]:
    found = mathematics.compare(text, question.facts["solution"], SECONDS)
    return {"math_verify": Verdict(found.is_equal, found.reading or _vote(answer))}


def _vote(answer: str) -> str:
    form = latex.normal_form(answer)
    return answer if form is None else form


TEST = Split(("math500", "math500-test", "math500_test", "MATH-500/test", "math500/test"), FROM)
STOP = ("Problem:",)


def _generation(grade: Grade, stop: tuple[str, ...]) -> Generation:
    return Generation(grade, stop, is_mathematics=True)


TASK = Task(
    name="math500",
    source=f"{HARNESS}, hendrycks_math500, version 1.0",
    kind="generated",
    metrics=("exact_match", "math_verify"),
    question=question,
    test=TEST,
    generation=_generation(grade, STOP),
)
MINERVA = Task(
    name="math500_minerva",
    source=f"{HARNESS}, minerva_math500, version 3.1",
    kind="generated",
    metrics=("math_verify",),
    question=worked,
    test=TEST,
    shots=4,
    examples=Split(("math500-shots", "math500_shots", "math500/shots"), SHOTS_FROM),
    sampler="first",
    generation=_generation(grade_worked, STOP),
)
IN_A_BOX = Task(
    name="math500_boxed",
    source="DeepSeek-R1's README (step by step, the answer in a box)",
    kind="generated",
    metrics=("exact_match", "math_verify"),
    question=boxed,
    test=TEST,
    generation=_generation(grade_boxed, ()),
)
