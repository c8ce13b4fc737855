"""R1's four stages: cold start, reasoning RL, rejection sampling and tuning, RL for all.

From the bases of `zero`, by the commands that a user types. Both RL stages and rejection sampling
together draw as many outputs as 20 of its rollouts, after which it has an exam. Each stage begins
with what the one before left, but for the second tuning, which begins with the base, as the
report's does.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dsjax.config.run import RunConfig
from dsjax.rl import preference
from dsjax.rl.tasks import catalog, task
from dsjax.rl.tasks.task import Problem
from dsjax.rl.update import rl_of
from experiments.common import plot
from experiments.common.command import Asked
from experiments.r1 import replies, samples, teach, verdicts, zero

PASSES = 4
"""Samples of each held-out question after each stage."""
APART = 1000
"""Distance of the seeds of different questions."""


@dataclass(frozen=True)
class Sizes:
    """Counts of examples, questions and steps."""

    cold: int = 300
    """Worked solutions of the cold start."""
    steps: int = 8
    """Rollouts of either RL."""
    sampled: int = 256
    """Questions of rejection sampling, of `samples` outputs each."""
    samples: int = 4
    open: int = 150
    """Open questions of the second tuning."""
    pairs: int = 800
    held_pairs: int = 256
    open_share: float = 0.25
    """Of the questions of RL for all."""
    open_exam: int = 64
    judge_steps: int = 60


QUICK = Sizes(cold=12, steps=2, sampled=4, samples=4, open=6, pairs=12, held_pairs=8, open_exam=4,
              judge_steps=2)


def main(asked: Asked) -> None:
    """Run each seed, write the tables and draw."""
    seeds = teach.seeds(asked)
    if asked.is_redraw:
        runs = zero.kept(asked, "stages", seeds)
    else:
        runs = [taught(asked, seed) for seed in seeds]
        alone = [] if asked.is_quick else zero.kept(asked, "zero", seeds)
        asked.write("stages", "held-out sums after each of four stages, and after RL alone with "
                    "as many outputs", verdicts.STAGE_COLUMNS, verdicts.stage_rows(runs, alone),
                    verdict=verdicts.of_stages(runs, alone) if alone else None)
        asked.write("preference", "a preference model's agreement with held-out pairs, and the "
                    "replies that it taught", verdicts.JUDGE_COLUMNS, verdicts.judge_rows(runs))
    draw(asked, runs, [] if asked.is_quick else zero.kept(asked, "zero", seeds))


def taught(asked: Asked, seed: int) -> dict[str, Any]:
    """The record of a seed."""
    path = asked.records / f"stages-seed{seed}.json"
    if path.is_file():
        return json.loads(path.read_text())
    of = QUICK if asked.is_quick else Sizes()
    run = config(asked, seed)
    base = teach.base(asked, seed)
    cold = tuned(asked, f"cold-seed{seed}", base, seed, cold_start(run, of))
    shared = teach.small(asked) | {"seed": seed, "rl.pass-samples": PASSES, "rl.steps": of.steps,
                                   "rl.eval-every": 0}
    reason = teach.child(asked, f"reason-seed{seed}", "rl", teach.CONFIG,
                         shared | {"init-from": cold})
    sampled = rejection(asked, run, reason, of)
    second = tuned(asked, f"second-seed{seed}", base, seed,
                   sampled["examples"] + small_talk(run, of))
    judge = judged(asked, run, second, of)
    last = teach.child(asked, f"all-seed{seed}", "rl", teach.CONFIG, shared | mixed(
        asked, run, of) | {"init-from": second, "rl.preference": asked.runs / f"judge-seed{seed}"})
    before, after = (open_exam(asked, run, folder, of) for folder in (second, last))
    names = [f"{name}-seed{seed}" for name in ("cold", "reason", "second", "all")]
    clock = teach.clock(asked, names) + [
        one["clock"] for one in (sampled, judge, before, after)]
    stages = [teach.curves(folder) for folder in (reason, last)]
    return teach.keep(asked, {
        "claim": f"{teach.CONFIG}: four stages", "arm": "stages", "seeds": [seed],
        "sizes": dataclasses.asdict(of), "tuning": TUNING, "base": teach.curves(base.parent),
        "reasoning": stages[0], "for_all": stages[1],
        "right_samples": sampled["right"], "examples": len(sampled["examples"]),
        "agreement": judge["agreement"], "possible": judge["possible"],
        "liked": [before["liked"], after["liked"]], "clock": clock})


TUNING = {"train.seq-len": 240, "train.batch-size": 8, "sft.epochs": 3,
          "learning-rate.peak": 3e-4, "learning-rate.low": 3e-5, "learning-rate.last": 3e-5}
"""Flags of either tuning: the report's epochs and a cosine to a tenth, at a rate for this size."""


def config(asked: Asked, seed: int) -> RunConfig:
    """The run that the commands give, small in the quick form."""
    run = dataclasses.replace(teach.config(), seed=seed)
    if not asked.is_quick:
        return run
    flags = {name.removeprefix("rl.").replace("-", "_"): value
             for name, value in teach.QUICK.items() if name.startswith("rl.")}
    sizes = {name.removeprefix("model.").replace("-", "_"): value
             for name, value in teach.QUICK.items() if name.count(".") == 1
             and name.startswith("model.")}
    assert run.model.moe is not None, "a mixture"
    moe = dataclasses.replace(run.model.moe, expert_dim=teach.QUICK["model.moe.expert-dim"])
    return dataclasses.replace(run, rl=dataclasses.replace(rl_of(run), **flags),
                               model=dataclasses.replace(run.model, moe=moe, **sizes))


def tuned(asked: Asked, name: str, base: Path, seed: int,
          examples: Sequence[dict[str, str]]) -> Path:
    """Tune a model on examples by `dsjax sft`; the folder of the run."""
    path = asked.runs / f"{name}.jsonl"
    if not path.is_file():
        samples.write(path, examples)
    return teach.child(asked, name, "sft", base, TUNING | {"data.train": path, "seed": seed})


def sums(run: RunConfig, count: int, at: int) -> list[Problem]:
    """Training problems of sums; `at` tells those of one use from those of another."""
    stream = task.problems(catalog.find("sum"), rl_of(run).level, "train", run.seed + APART * at)
    return list(itertools.islice(stream, count))


def cold_start(run: RunConfig, of: Sizes) -> list[dict[str, str]]:
    """Worked solutions: the report's thousands of long ones, here some hundreds."""
    return [samples.example(one.prompt, one.long) for one in sums(run, of.cold, 1)]


def small_talk(run: RunConfig, of: Sizes) -> list[dict[str, str]]:
    """Open questions with replies of every length, as the second tuning has general data."""
    rng = np.random.default_rng([run.seed, 3])
    asked = replies.questions(rl_of(run).level, "train", run.seed + APART * 3, of.open)
    return [samples.example(one.prompt, replies.reply(one, rng)) for one in asked]


def rejection(asked: Asked, run: RunConfig, folder: Path, of: Sizes) -> dict[str, Any]:
    """Sample the model of the first RL; of each question one right output is kept."""
    path = asked.runs / f"kept-seed{run.seed}.json"
    if not path.is_file():
        with samples.once(path) as made:
            drawn = samples.Model(folder, run).sample(sums(run, of.sampled, 2), of.samples,
                                                      run.seed)
            made["right"] = samples.share(drawn.rewards)
            made["examples"] = samples.kept(drawn)
    return samples.read(path)


def judged(asked: Asked, run: RunConfig, folder: Path, of: Sizes) -> dict[str, Any]:
    """Train the preference model, from the second tuning's weights, and ask it of held-out pairs.

    `possible`: the agreement of one who knows what is liked.
    """
    path, level = asked.runs / f"judge-seed{run.seed}.json", rl_of(run).level
    if not path.is_file():
        with samples.once(path) as made:
            seen = replies.questions(level, "train", run.seed + APART * 4, of.pairs)
            new = replies.questions(level, "held_out", run.seed + APART * 4, of.held_pairs)
            learnt, held = (replies.pairs(one, run.seed) for one in (seen, new))
            found = preference.train(folder, learnt, preference.Settings(
                steps=of.judge_steps, seed=run.seed))
            preference.save(asked.runs / f"judge-seed{run.seed}", *found)
            made["agreement"] = preference.agreement(preference.Judge(*found), held)
            made["possible"] = preference.agreement(knows(new), held)
    return samples.read(path)


def knows(asked: Sequence[Problem]) -> Any:
    """The judge's own liking as a judge."""
    of = {one.prompt: one for one in asked}
    return lambda rows: [float(replies.liked(of[prompt], text)) for prompt, text in rows]


def mixed(asked: Asked, run: RunConfig, of: Sizes) -> dict[str, Any]:
    """Files of the last stage, as flags: sums and open questions, and the exam of the config."""
    cfg = rl_of(run)
    questions = asked.runs / f"mixed-seed{run.seed}.jsonl"
    exam = asked.runs / f"exam-seed{run.seed}.jsonl"
    count = of.steps * cfg.prompts
    few = round(of.open_share * count)
    open_ = [{"prompt": one.prompt, "answer": None}
             for one in replies.questions(cfg.level, "train", run.seed + APART * 5, few)]
    samples.write(questions, [*map(row, sums(run, count - few, 5)), *open_])
    samples.write(exam, map(row, catalog.examined(cfg, run.seed)))
    return {"rl.task": questions, "rl.exam": exam}


def row(problem: Problem) -> dict[str, str]:
    """A sum as a line of a file of problems."""
    return {"prompt": problem.prompt, "answer": problem.answer, "solution": problem.trace}


def open_exam(asked: Asked, run: RunConfig, folder: Path, of: Sizes) -> dict[str, Any]:
    """Liking of replies to held-out open questions, which nobody was asked before."""
    path = folder.with_suffix(".open.json")
    if not path.is_file():
        with samples.once(path) as made:
            ask = replies.questions(rl_of(run).level, "held_out", run.seed + APART * 6,
                                    of.open_exam)
            drawn = samples.Model(folder, run).sample(ask, 4, run.seed)
            made["liked"] = samples.share(
                replies.liked(one, text) for one, text in zip(drawn.problems, drawn.texts,
                                                              strict=True))
    return samples.read(path)


def draw(asked: Asked, runs: Sequence[dict[str, Any]], alone: Sequence[dict[str, Any]]) -> None:
    """Draw held-out accuracy and length by outputs drawn, the stages and RL alone."""
    with plot.figure(asked.folder / "stages.svg", width=8.6, height=2.6, panels=3) as axes:
        accuracy, length, open_ = axes.flat
        for made, color in [*((one, plot.COLORS[1]) for one in runs),
                            *((one, plot.COLORS[0]) for one in alone)]:
            points = verdicts.by_outputs(made)
            for ax, at in ((accuracy, 1), (length, 2)):
                ax.plot([one[0] for one in points], [one[at] for one in points], color=color, lw=1)
        for made in runs:
            zero.curve(open_, made["for_all"]["curves"].get("rule_preference", []),
                       plot.COLORS[1])
        zero.label(accuracy, {"four stages": plot.COLORS[1], "RL alone": plot.COLORS[0]})
        titles = ("Held out, sampled", "Tokens of an output", "Preference model's reward")
        for ax, title in zip(axes.flat, titles, strict=True):
            ax.set_title(title)
        for ax in (accuracy, length):
            ax.set_xlabel("outputs drawn, thousands")
        open_.set_xlabel("step of RL for all")
        accuracy.set_ylim(0, 1.04)
