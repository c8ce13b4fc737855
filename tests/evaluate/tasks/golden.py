"""What lm-evaluation-harness 0.4.13 made of a few rows, and the same rows for the tasks here."""

import functools
import json
from pathlib import Path

from dsjax.evaluate.evaluation import TASKS
from dsjax.evaluate.tasks import task as tasks

GOLDEN = Path(__file__).parents[2] / "golden"
DATA = GOLDEN / "tasks"
NAMES = {"gsm8k": "gsm8k", "arc": "arc_challenge", "hellaswag": "hellaswag",
         "lambada": "lambada_openai", "humaneval": "humaneval", "mbpp": "mbpp",
         "math500": "hendrycks_math500", "math500_minerva": "minerva_math500"}
"""Tasks here, and their names there."""
SUBJECTS = ("abstract_algebra", "marketing", "college_physics")


@functools.cache
def golden():
    return json.loads((GOLDEN / "tasks.json").read_text())["tasks"]


def equal():
    return json.loads((GOLDEN / "tasks.json").read_text())["equal"]


def items(name, shots=None):
    return tasks.items(TASKS[name], DATA, shots)
