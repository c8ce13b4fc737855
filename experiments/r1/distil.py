"""Distillation: smaller students learn from a taught model's outputs, or by RL of their own.

The teacher is what the first two of the four stages left, the best of them. Both ways begin with
the same base of the student, and see as many questions.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dsjax import params
from dsjax.config.model import MLAConfig, ModelConfig
from dsjax.config.run import RunConfig
from dsjax.config.stored import run_to_json
from dsjax.errors import UserError
from dsjax.model import transformer
from dsjax.rl.update import rl_of
from experiments.common import arms, plot
from experiments.common.command import Asked
from experiments.r1 import samples, stages, teach, verdicts, zero

STUDENTS = ("dense", "mixture")
STEPS, QUICK_STEPS = 30, 2
"""Rollouts of RL, each of 32 questions; the teacher is asked as many."""
BASE_STEPS = 300
PASSES = 8
TUNING = stages.TUNING | {"learning-rate.peak": 1e-3, "learning-rate.low": 1e-4,
                          "learning-rate.last": 1e-4}
"""Flags of a student's tuning: a cosine to a tenth, as the report's."""


def main(asked: Asked) -> None:
    """Run each student by each seed, write the table and draw."""
    seeds = teach.seeds(asked)
    names = [f"distil-{student}" for student in STUDENTS]
    if asked.is_redraw:
        runs = [one for name in names for one in zero.kept(asked, name, seeds)]
    else:
        runs = [taught(asked, student, seed) for student in STUDENTS for seed in seeds]
        asked.write("distil", "held-out sums of smaller students after RL of their own, and after "
                    "tuning on a taught model's outputs to as many questions",
                    verdicts.STUDENT_COLUMNS, verdicts.student_rows(runs),
                    verdict=verdicts.of_students(runs))
    draw(asked, runs)


def taught(asked: Asked, student: str, seed: int) -> dict[str, Any]:
    """The record of a student and a seed."""
    name = f"distil-{student}"
    path = asked.records / f"{name}-seed{seed}.json"
    if path.is_file():
        return json.loads(path.read_text())
    run = config(asked, student, seed)
    start = asked.runs / f"{name}-seed{seed}.start"
    start.mkdir(parents=True, exist_ok=True)
    run_to_json(run, start / "config.json")
    alone = teach.child(asked, f"{name}-rl-seed{seed}", "rl", start, {})
    traces = of_teacher(asked, run)
    tuned = asked.runs / f"{name}-seed{seed}.jsonl"
    samples.write(tuned, traces["examples"])
    folder = teach.child(asked, f"{name}-sft-seed{seed}", "sft", alone / "base",
                         TUNING | {"data.train": tuned, "seed": seed})
    scored = score(folder, run)
    clock = teach.clock(asked, [f"{name}-{way}-seed{seed}" for way in ("rl", "sft")])
    return teach.keep(asked, {
        "claim": f"{teach.CONFIG}: {student} student", "arm": name, "seeds": [seed],
        "student": student, "parameters": params.size(transformer.specs(run.model)),
        "questions": traces["questions"], "examples": len(traces["examples"]), "tuning": TUNING,
        "alone": teach.curves(alone), "distilled": scored, "clock": [*clock, scored["clock"]],
        "config": arms.plain(run)})


def config(asked: Asked, student: str, seed: int) -> RunConfig:
    """RL of a student from nothing, its base included; whatever base is accepted."""
    run = stages.config(asked, seed)
    cfg = dataclasses.replace(
        rl_of(run), steps=QUICK_STEPS if asked.is_quick else STEPS, base_right=0.0,
        pass_samples=4 if asked.is_quick else PASSES)
    train = dataclasses.replace(run.train, steps=BASE_STEPS)
    if asked.is_quick:
        train = dataclasses.replace(train, steps=12, batch_size=8, seq_len=64)
    return dataclasses.replace(run, name=f"student_{student}", rl=cfg, train=train,
                               model=model(run.model, student))


def model(of: ModelConfig, student: str) -> ModelConfig:
    """Half the teacher's width and two layers: one of a mixture, or none."""
    assert of.moe is not None, "the teacher is a mixture"
    is_dense = student == "dense"
    small = MLAConfig(heads=2, q_rank=32, kv_rank=16, nope_dim=32, rope_dim=16, value_dim=32)
    moe = dataclasses.replace(of.moe, experts=4, groups=2, groups_per_token=1, expert_dim=48)
    return dataclasses.replace(
        of, d_model=of.d_model // 2, layers=2, dense_layers=2 if is_dense else 1,
        dense_dim=of.dense_dim // 2, attention=small, moe=None if is_dense else moe)


def of_teacher(asked: Asked, run: RunConfig) -> dict[str, Any]:
    """One output of the taught model to each of as many questions as RL asks; the right ones."""
    path, cfg = asked.runs / f"traces-seed{run.seed}.json", rl_of(run)
    if not path.is_file():
        teacher = stages.config(asked, run.seed)
        folder = asked.runs / f"reason-seed{run.seed}"
        if asked.is_quick:
            folder = teach.base(asked, run.seed)
        elif not folder.is_dir():
            raise UserError(f"{folder} has no taught model; run the part stages first, which keeps "
                            "it there")
        with samples.once(path) as made:
            questions = stages.sums(teacher, cfg.steps * cfg.prompts, 8)
            drawn = samples.Model(folder, teacher).sample(questions, 1, run.seed)
            right = samples.kept(drawn)
            made["questions"], made["examples"] = len(questions), right or stages.cold_start(
                teacher, stages.QUICK) if asked.is_quick else right
    return samples.read(path)


def score(folder: Path, run: RunConfig) -> dict[str, Any]:
    """Exam and pass@k of a tuned student, by the questions and seeds of the other."""
    path = folder.with_suffix(".score.json")
    if not path.is_file():
        with samples.once(path) as made:
            made |= samples.Model(folder, run).score(rl_of(run).pass_samples)
    return samples.read(path)


def draw(asked: Asked, runs: Sequence[dict[str, Any]]) -> None:
    """Draw each student's RL, and where tuning brings it."""
    with plot.figure(asked.folder / "distil.svg", width=8.6, height=2.6, panels=2) as axes:
        for ax, student in zip(axes.flat, STUDENTS, strict=True):
            own = [one for one in runs if one["student"] == student]
            for made in own:
                exams = made["alone"]["exams"]
                ax.plot([one["step"] for one in exams], [one["sampled"] for one in exams],
                        color=plot.COLORS[0], lw=1)
                ax.axhline(made["distilled"]["pass"]["answer_pass_1"], color=plot.COLORS[1], lw=1)
            zero.label(ax, {"RL": plot.COLORS[0], "distilled": plot.COLORS[1]})
            ax.set_title(f"{student.capitalize()} student, held out, sampled")
            ax.set_xlabel("step of RL")
            ax.set_ylim(0, 1.04)
