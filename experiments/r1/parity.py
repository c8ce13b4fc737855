"""Parity with trl: the same GRPO of the same checkpoint by another program.

trl begins with the base as `dsjax convert` exports it, and asks the questions that `zero` asked, in
their order. Its rewards are set beside those of `zero`'s record, and a step's seconds beside those
of a few steps of `dsjax rl` that are run next to it, as the machine's speed drifts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dsjax.data.tokenizers import tokenizer
from dsjax.errors import UserError
from dsjax.rl.tasks import catalog, task
from dsjax.rl.update import rl_of
from experiments.common import plot, record
from experiments.common.command import Asked
from experiments.r1 import samples, stages, teach, verdicts, zero

PEER = Path(__file__).with_name("peer_trl.py")
STEPS, TIMED = 30, 6
"""Rollouts of trl, and those whose seconds are compared, but for the first."""


def main(asked: Asked) -> None:
    """Run each seed, write the table and draw."""
    python, seeds = asked.values.get("peer_python"), teach.seeds(asked)
    if asked.is_redraw:
        runs = zero.kept(asked, "trl", seeds)
    elif python is None:
        if not asked.is_quick:
            raise UserError("there is nothing to compare with: give --peer-python, a Python with "
                            "torch 2.13 and trl 1.16")
        print("no peer in the quick form without --peer-python: dsjax's side alone")
        ours(asked, 0)
        return
    else:
        runs = [trained(asked, python, seed) for seed in seeds]
        beside = own(asked, runs)
        asked.write("trl", "rewards of GRPO by trl and by dsjax from the same base, on the same "
                    "questions, and seconds of a step", verdicts.PEER_COLUMNS,
                    verdicts.peer_rows(runs, beside), verdict=verdicts.of_peer(runs, beside))
    draw(asked, runs, own(asked, runs))


def own(asked: Asked, runs: Sequence[dict[str, Any]]) -> list[list[float]]:
    """Rewards of `zero` in as many steps; of the quick form, those of its few steps."""
    if asked.is_quick:
        return [one["ours"]["rewards"] for one in runs]
    of = zero.kept(asked, "zero", [one["seeds"][0] for one in runs])
    return [one["curves"]["reward"][: len(run["rewards"])] for one, run in zip(of, runs,
                                                                             strict=True)]


def trained(asked: Asked, python: str, seed: int) -> dict[str, Any]:
    """The record of a seed."""
    path = asked.records / f"trl-seed{seed}.json"
    if path.is_file():
        return json.loads(path.read_text())
    run, cfg = stages.config(asked, seed), rl_of(stages.config(asked, seed))
    beside = ours(asked, seed)
    base, steps = teach.base(asked, seed), 2 if asked.is_quick else STEPS
    folder, questions = asked.runs / f"hf-seed{seed}", asked.runs / f"asked-seed{seed}.jsonl"
    if not (folder / "config.json").is_file():
        subprocess.run([sys.executable, "-m", "dsjax", "convert", "dsjax-to-hf", str(base),
                        str(folder)], cwd=record.ROOT, check=True)
    samples.write(questions, [
        stages.row(one) for step in range(steps)
        for one in task.questions(catalog.find("sum"), cfg.level, (run.seed,), step, cfg.prompts)])
    words = tokenizer.load(base / "tokenizer.json", end=run.data.end_token)
    end = words.pieces[words.end_id].decode()
    given = {"folder": folder, "questions": questions, "end": end, "seed": seed, "steps": steps,
             "prompts": cfg.prompts, "samples": cfg.samples, "rate": cfg.learning_rate,
             "max-new-tokens": cfg.max_new_tokens}
    done = subprocess.run(
        [python, str(PEER), *(f"--{name}={value}" for name, value in given.items())],
        cwd=asked.runs, env=os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}, text=True,
        stdout=subprocess.PIPE)
    if done.returncode:
        raise UserError(f"the peer ended with status {done.returncode}; what it said stands above")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return teach.keep(asked, {"claim": f"{teach.CONFIG}: trl", "arm": "trl", "seeds": [seed],
                              "ours": beside, "peer": found.pop("versions"), **found})


def ours(asked: Asked, seed: int) -> dict[str, list[float]]:
    """Rewards and seconds of a few steps of `dsjax rl`."""
    folder = teach.child(
        asked, f"timed-seed{seed}", "rl", teach.CONFIG,
        teach.small(asked) | {"seed": seed, "init-from": teach.base(asked, seed), "rl.steps":
                              2 if asked.is_quick else TIMED, "rl.eval-every": 0})
    found = teach.curves(folder)["curves"]
    return {"rewards": found["reward"], "seconds": found["seconds"]}


def draw(asked: Asked, runs: Sequence[dict[str, Any]], beside: Sequence[list[float]]) -> None:
    """Draw rewards by steps, a line for each seed of each."""
    with plot.figure(asked.folder / "trl.svg", width=5.0, height=2.6) as ax:
        for made, own in zip(runs, beside, strict=True):
            zero.curve(ax, own, plot.COLORS[0])
            zero.curve(ax, made["rewards"], plot.COLORS[1])
        zero.label(ax, {"dsjax": plot.COLORS[0], "trl": plot.COLORS[1]})
        ax.set_title("Reward of a rollout, three seeds each")
        ax.set_xlabel("step")
        ax.set_ylim(0, 1.04)
