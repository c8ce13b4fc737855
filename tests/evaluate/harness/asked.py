"""Requests as the harness makes them, and its local tasks; for tests where it is installed."""

import functools
import shutil
from pathlib import Path

from tests.evaluate.tasks.golden import DATA

TASK_FILES = Path(__file__).parents[3] / "docs" / "harness"
NAMES = {"arc": "arc_challenge", "hellaswag": "hellaswag", "lambada": "lambada_openai",
         "gsm8k": "gsm8k", "text": "text"}
CONTEXT = 512


def place(folder, monkeypatch):
    """Go to a folder that has data/eval with the public files, and no network."""
    import datasets

    shutil.copytree(DATA, folder / "data" / "eval")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    return folder


def asked(kind, *arguments, task="a", number=0):
    from lm_eval.api.instance import Instance

    return Instance(kind, {}, arguments, 0, metadata=(task, number, 1))


def likelihoods(*pairs, task="a"):
    return [asked("loglikelihood", *pair, task=task, number=i) for i, pair in enumerate(pairs)]


def prompts(*pairs):
    return [asked("generate_until", *pair, number=i) for i, pair in enumerate(pairs)]


def answer(lm, prompt, **given):
    (text,) = lm.generate_until(prompts((prompt, given)), disable_tqdm=True)
    return text


@functools.cache
def manager():
    """The local tasks alone: to look through all of the harness's takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(TASK_FILES), include_defaults=False)


def ask(lm, names, **settings):
    import lm_eval

    return lm_eval.simple_evaluate(lm, tasks=[f"local_{NAMES[name]}" for name in names],
                                   task_manager=manager(), bootstrap_iters=10, **settings)
