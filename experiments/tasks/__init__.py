"""Scores of small trained models on public tasks, beside what luck gives."""

from experiments.common.study import Claim, Flag, Part, Study

DATA = Flag("--data", "folder of the tasks' files (docs/evaluation.md names them)", str,
            "data/eval")
LIMIT = Flag("--limit", "items of each task, of each subject of MMLU", int, 40)

STUDY = Study(
    name="tasks",
    claim="a model of ten million parameters that has read Shakespeare sits at chance on MMLU and "
          "cannot add, and lm-evaluation-harness finds the numbers that dsjax evaluate finds",
    source="none of the reports: a control of the measuring itself",
    parts=(Part(
        name="scores",
        command="python -m experiments.tasks.run scores",
        asks="all tasks of `dsjax evaluate` for the demo's model and for one trained twice as "
             "long, with standard errors and chance",
        cost="20 minutes on two cores, half of it training",
        quick="20 steps, three made-up questions",
        verdict="supports: MMLU at 1.2 and -1.3 errors from chance, nothing written is right but "
                "two last numbers of 40",
        records=("scores",),
        flags=(DATA, LIMIT),
        is_on_cpu=True,
        is_resumable=True,
        is_tuned=True,
    ), Part(
        name="harness",
        command="python -m experiments.tasks.run harness",
        asks="the same models asked by lm-evaluation-harness over its own definitions of four "
             "tasks, measure by measure; needs the extra lm-eval, and the models of `scores`",
        cost="15 minutes on two cores",
        quick="the three made-up questions",
        verdict="supports: the same value, 16 of 16 times",
        records=("harness",),
        flags=(DATA, LIMIT),
        is_on_cpu=True,
        is_tuned=True,
    )),
    claims=(
        Claim("chance", "ten million parameters sit at chance on MMLU",
              "none of the reports", "scores", "scores", "supports",
              "{scores: demo mmlu / value}, chance {scores: demo mmlu / chance}"),
    ),
)
