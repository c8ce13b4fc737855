"""Outputs of a taught model, and what it scores, by an engine in this process."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dsjax import weights as folders
from dsjax.config.run import RunConfig
from dsjax.data.tokenizers import tokenizer
from dsjax.disk import write_whole
from dsjax.rl import exam, opening, rollout, weights
from dsjax.rl.loop import EXAM_SEED
from dsjax.rl.rollout import Rollout
from dsjax.rl.tasks import catalog
from dsjax.rl.tasks.task import Problem
from dsjax.rl.update import rl_of

ROWS = 256
"""Outputs that an engine makes at once."""


class Model:
    """The newest weights of a run's folder, in an engine."""

    def __init__(self, folder: Path, run: RunConfig) -> None:
        """Read weights and tokenizer; the run says model and size of rows."""
        cfg = rl_of(run)
        rows = dataclasses.replace(cfg, prompts=ROWS // cfg.samples)
        self._run = dataclasses.replace(run, rl=rows, init_from=str(folder))
        self._words = tokenizer.load(folder / "tokenizer.json", end=run.data.end_token)
        places = weights.open_places(self._run)
        params = folders.load(folder, "float32", choice=folders.Choice(model=run.model))
        self._engine = weights.open_engine(self._run, params, self._words, places)
        self._asked = opening.asked_of(self._run, self._words, folder)

    def sample(self, problems: Sequence[Problem], samples: int, seed: int) -> Rollout:
        """Sample outputs at temperature 1; scored by rule where there is an answer."""
        asked = dataclasses.replace(self._asked, samples=samples, judge=lambda rows: [0.0] * len(
            rows))
        return rollout.roll_out(self._engine, self._words, problems, asked, (seed, 2**21))

    def score(self, samples: int) -> dict[str, dict[str, float]]:
        """The exam and pass@k that `dsjax rl` would take, by the same questions and seeds."""
        cfg, seed = rl_of(self._run), self._run.seed
        problems = catalog.examined(cfg, seed)
        taken = exam.take(self._engine, self._words, problems, self._asked, seed + EXAM_SEED)
        made = rollout.roll_out(
            self._engine, self._words, problems, dataclasses.replace(self._asked, samples=samples),
            (seed + EXAM_SEED, 2**20 + 1))
        return {"exam": vars(taken), "pass": exam.passes(made, sum(self._asked.rewards.values()))}


def kept(made: Rollout) -> list[dict[str, str]]:
    """One right output of each question that has one, the first: examples to learn from."""
    right: dict[str, str] = {}
    for problem, text, one in zip(made.problems, made.texts, made.scored, strict=True):
        if one.total == 1.0:
            right.setdefault(problem.prompt, text)
    return [example(prompt, text) for prompt, text in right.items()]


def example(prompt: str, completion: str) -> dict[str, str]:
    """A line of `dsjax sft`."""
    return {"prompt": prompt, "completion": completion}


def write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write lines of JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, "".join(json.dumps(row) + "\n" for row in rows))


@contextlib.contextmanager
def once(path: Path) -> Iterator[dict[str, Any]]:
    """Give a dict to fill, which becomes the file with the seconds it took."""
    began, cpu, made = time.perf_counter(), time.process_time(), dict[str, Any]()
    yield made
    made["clock"] = {"wall": round(time.perf_counter() - began, 1),
                     "cpu": round(time.process_time() - cpu, 1), "others": 0.0}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(made, default=float) + "\n")


def read(path: Path) -> dict[str, Any]:
    """A file of `once`."""
    return json.loads(path.read_text())


def share(values: Iterable[float]) -> float:
    """Mean of some numbers."""
    return float(np.mean(list(values)))
