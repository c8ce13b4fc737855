"""Report of a step of reinforcement learning: numbers, samples, and sentences when a run is flat.

A run can look alive and learn nothing: where every reward of every group is equal, every output is
cut off, or a format is never earned, the loss is 0 or nearly so and no number is alarming. Each
case has its sentence here, with the number of steps it has lasted.

Axes: B outputs, T positions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from dsjax import disk
from dsjax.rl.exam import Exam
from dsjax.rl.objective import kl
from dsjax.rl.rollout import Rollout
from dsjax.rl.update import Known

PATIENCE = 3
"""Steps in a row after which a flat run is told of."""
FAR = 0.02
"""Share of tokens whose ratio is off, above which engine and trainer are said to differ."""
PATIENCE_FORMAT = 10
"""The same for a rule that no output has satisfied yet."""
WRITTEN = 16
"""Outputs that are written of a step."""
SHOWN = ("reward", "constant_groups", "truncated", "clipped", "length", "entropy", "kl",
         "equal_routes", "outside", "rollout_tok_s", "train_tok_s", "eta")
"""Names that a person is shown; the others are in metrics.jsonl."""


def values(made: Rollout, found: Known) -> dict[str, Any]:
    """Numbers of a rollout and of both sides' agreement, by name."""
    groups = [made.rewards[made.groups == group] for group in range(made.groups.max() + 1)]
    low, middle, high = np.asarray(found.mismatch.quantiles)
    names = dict.fromkeys(name for one in made.scored for name in one.parts)
    told: dict[str, Any] = {
        "reward": made.rewards.mean(),
        "constant_groups": np.mean([np.ptp(group) == 0 for group in groups]),
        "truncated": made.is_truncated.mean(),
        "length": made.lengths.mean(),
        "entropy": -found.old[made.mask].mean(),
        "mismatch_kl": found.mismatch.kl, "mismatch_k3": found.mismatch.k3,
        "ratio_low": low, "ratio_median": middle, "ratio_high": high,
        "outside": found.mismatch.outside,
        "faults": sum(made.faults.values()),
    } | {f"rule_{name}": np.mean([one.parts[name] for one in made.scored if name in one.parts])
         for name in names}
    if made.routes is not None:
        told["equal_routes"] = found.equal_routes
    if found.reference is not None:
        away = kl.k3(jnp.asarray(found.old), jnp.asarray(found.reference))
        told["kl"] = np.asarray(away)[made.mask].mean()
    return {name: float(value) for name, value in told.items()}


def of_exam(found: Exam) -> dict[str, float]:
    """Numbers of an exam, by name."""
    return {f"exam_{name}": value for name, value in vars(found).items()}


@dataclass
class Watch:
    """Account of a run, to tell when it is flat; a sentence is said once."""

    flat: int = 0
    truncated: int = 0
    unearned: dict[str, int] = field(default_factory=dict)
    _said: set[str] = field(default_factory=set)

    def after(self, step: int, told: Mapping[str, float], made: Rollout) -> list[str]:
        """Sentences about a step's numbers (`values`) that are due now."""
        self.flat = self.flat + 1 if told["constant_groups"] == 1 else 0
        self.truncated = self.truncated + 1 if told["truncated"] == 1 else 0
        due = {}
        if self.flat >= PATIENCE:
            same = "0" if told["reward"] == 0 else f"{told['reward']:.3g} on average"
            due["flat"] = (
                f"step {step}: for {self.flat} steps all outputs to a question have earned the "
                f"same ({same}), so nothing is learned; take easier questions (--rl.level), a base "
                "that is sometimes right, or more --rl.samples")
        if self.truncated >= PATIENCE:
            due["truncated"] = (
                f"step {step}: for {self.truncated} steps every output has been cut off at "
                f"{told['length']:.0f} tokens and counted out, so nothing is learned; raise "
                "--rl.max-new-tokens, or see that the base ends its texts")
        if told["outside"] > FAR:
            due["outside"] = (
                f"step {step}: of {told['outside']:.0%} of the tokens engine and trainer give "
                "probabilities that differ by more than a tenth; use one --precision for both, "
                "replay routes (--rl.replay-routes), or weigh tokens by --rl.correction token")
        for name, fault in _faults(made).items():
            count = made.faults[name]
            due[f"fault {name}"] = (f"step {step}: the rule {name} failed on {count} of "
                                    f"{len(made.scored)} outputs, which earned 0 of it ({fault})")
        names = [name.removeprefix("rule_") for name in told if name.startswith("rule_")]
        for name in names:
            never = self.unearned.get(name, 0)
            never = never + 1 if told[f"rule_{name}"] == 0 and never >= 0 else -1
            self.unearned[name] = never
            if never >= PATIENCE_FORMAT and len(names) > 1:
                due[f"unearned {name}"] = (
                    f"step {step}: in {never} steps no output has earned anything of the rule "
                    f"{name}, which therefore teaches nothing; show the base some that do, or "
                    "leave it out of --rl.rewards")
        fresh = [sentence for key, sentence in due.items() if key not in self._said]
        self._said |= due.keys()
        return fresh


def _faults(made: Rollout) -> dict[str, str]:
    """The first error of each rule that failed."""
    found: dict[str, str] = {}
    for one in made.scored:
        for name, error in one.faults.items():
            found.setdefault(name, error)
    return found


def write_samples(folder: Path, step: int, made: Rollout) -> None:
    """Write some outputs of a step, whole groups first, as JSON lines; a step's file is its own."""
    rows = [{"prompt": problem.prompt, "output": text, "reward": one.total,
             "rules": dict(one.parts), "faults": dict(one.faults), "truncated": bool(cut),
             "tokens": int(length)}
            for problem, text, one, cut, length in zip(
                made.problems, made.texts, made.scored, made.is_truncated, made.lengths,
                strict=True)]
    disk.make_folder(folder, "name another --output.folder")
    text = "".join(json.dumps(row) + "\n" for row in rows[:WRITTEN])
    disk.write_whole(folder / f"step-{step:06d}.jsonl", text,
                     "make room or name another --output.folder")
