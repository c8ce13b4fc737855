"""Tables and verdicts of what stands beside `zero`; the rules stand in the README, written before.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

STAGE_COLUMNS = ("seed", "base", "cold start", "reasoning RL", "second tuning", "RL for all",
                 "RL alone, 20 rollouts", "RL alone, 45", "worked, four stages",
                 "worked, RL alone, 45", "length", "right of samples", "CPU minutes")
JUDGE_COLUMNS = ("seed", "pairs agreed", "at most", "liked before", "liked after")
STUDENT_COLUMNS = ("student", "seed", "parameters", "base", "base works", "working right", "RL",
                   "RL works", "distilled", "distilled works", "examples", "CPU minutes")
PEER_COLUMNS = ("seed", "dsjax, all steps", "dsjax, last ten", "trl, all steps", "trl, last ten",
                "dsjax s a step", "trl s a step", "ratio")
FASTER = 2.0
"""Factor by which a step of trl's is to take longer."""
BETTER = 0.05
"""Sampled accuracy by which one is called better than the other."""


def accuracies(made: dict[str, Any]) -> list[float]:
    """Sampled accuracy after each stage: cold start, reasoning RL, second tuning, RL for all."""
    return [made[part]["passes"][at]["answer_pass_1"]
            for part in ("reasoning", "for_all") for at in (0, -1)]


def by_outputs(made: dict[str, Any]) -> list[tuple[float, float, float]]:
    """(thousands of outputs drawn, sampled accuracy, length) of each exam on the way."""
    if "reasoning" not in made:
        rows = _rows(made["config"]["rl"]["prompts"], made["config"]["rl"]["samples"])
        return [(one["step"] * rows, one["sampled"], one["length"]) for one in made["exams"]]
    of = made["sizes"]
    rows = _rows(32, 8)
    first = of["steps"] * rows + of["sampled"] * of["samples"] / 1000
    return [(start + one["step"] * rows, one["sampled"], one["length"])
            for part, start in (("reasoning", 0.0), ("for_all", first))
            for one in made[part]["exams"]]


def _rows(prompts: int, samples: int) -> float:
    return prompts * samples / 1000


def at_equal_outputs(made: dict[str, Any], alone: dict[str, Any]) -> float:
    """Sampled accuracy of RL alone at the exam after as many outputs as the stages have drawn."""
    drawn = by_outputs(made)[-1][0]
    return next(sampled for at, sampled, _ in by_outputs(alone) if abs(at - drawn) < 1e-6)


def stage_rows(runs: Sequence[dict[str, Any]],
               alone: Sequence[dict[str, Any]]) -> list[list[Any]]:
    """Rows of the stages' table; what RL alone came to is empty where it was not run."""
    made = []
    for at, run in enumerate(runs):
        beside = alone[at]["passes"][-1] if alone else None
        made.append([
            run["seeds"][0], _share(run["base"]["passes"][0]["answer_pass_1"]),
            *map(_share, accuracies(run)),
            _share(at_equal_outputs(run, alone[at])) if alone else "",
            _share(beside["answer_pass_1"]) if beside else "",
            _share(run["for_all"]["passes"][-1]["worked_pass_1"]),
            _share(beside["worked_pass_1"]) if beside else "",
            f"{run['for_all']['exams'][-1]['length']:.1f}", _share(run["right_samples"]),
            f"{cpu_minutes(run):.1f}"])
    return made


def of_stages(runs: Sequence[dict[str, Any]], alone: Sequence[dict[str, Any]]) -> str:
    """Verdict on SFT + RL against RL alone at equal outputs."""
    return by_gain([accuracies(run)[-1] - at_equal_outputs(run, other)
                    for run, other in zip(runs, alone, strict=True)], BETTER)


def by_gain(gains: Sequence[float], least: float) -> str:
    """supports where each gain is at least so large, contradicts where each is at most minus it."""
    if all(gain >= least for gain in gains):
        return "supports"
    return "contradicts" if all(gain <= -least for gain in gains) else "inconclusive"


def judge_rows(runs: Sequence[dict[str, Any]]) -> list[list[Any]]:
    """Rows of the preference model's table."""
    return [[run["seeds"][0], _share(run["agreement"]), _share(run["possible"]),
             *(f"{one:.2f}" for one in run["liked"])] for run in runs]


def student_rows(runs: Sequence[dict[str, Any]]) -> list[list[Any]]:
    """Rows of the students' table."""
    made = []
    for run in runs:
        (first, *_, last), after = run["alone"]["exams"], run["distilled"]["exam"]
        before, own = (one["answer_pass_1"] for one in (run["alone"]["passes"][0],
                                                        run["alone"]["passes"][-1]))
        right = first["right_long"]
        made.append([
            run["student"], run["seeds"][0], f"{run['parameters']:,}", _share(before),
            _share(first["long"]), "" if right is None else _share(right), _share(own),
            _share(last["long"]), _share(run["distilled"]["pass"]["answer_pass_1"]),
            _share(after["long"]), run["examples"], f"{cpu_minutes(run):.1f}"])
    return made


def of_students(runs: Sequence[dict[str, Any]]) -> str:
    """Verdict on distillation against RL on a small model, both students and all seeds."""
    return by_gain([run["distilled"]["pass"]["answer_pass_1"]
                    - run["alone"]["passes"][-1]["answer_pass_1"] for run in runs], BETTER)


def seconds(made: dict[str, Any]) -> tuple[float, float]:
    """Median seconds of a step by dsjax and by trl, of the same first steps but one."""
    count = len(made["ours"]["seconds"])
    return (statistics.median(made["ours"]["seconds"][1:]),
            statistics.median(made["seconds"][1:count]))


def of_curve(rewards: Sequence[float]) -> tuple[float, float]:
    """Mean reward of all steps, and of the last ten."""
    return statistics.fmean(rewards), statistics.fmean(rewards[-10:])


def peer_rows(runs: Sequence[dict[str, Any]],
              beside: Sequence[Sequence[float]]) -> list[list[Any]]:
    """Rows of the table beside trl."""
    made = []
    for run, own in zip(runs, beside, strict=True):
        ours, theirs = seconds(run)
        made.append([run["seeds"][0], *map(_share, of_curve(own)), *map(
            _share, of_curve(run["rewards"])), f"{ours:.2f}", f"{theirs:.2f}",
            f"{theirs / ours:.2f}"])
    return made


def of_peer(runs: Sequence[dict[str, Any]], beside: Sequence[Sequence[float]]) -> str:
    """Verdict on equal rewards and half the time.

    Equal within the seeds' noise: by either mean the libraries' averages over seeds differ by no
    more than the larger distance between two seeds of one of them.
    """
    curves = [[of_curve(one) for one in own] for own in (
        beside, [run["rewards"] for run in runs])]
    is_equal = True
    for at in range(2):
        ours, theirs = ([one[at] for one in of] for of in curves)
        noise = max(max(of) - min(of) for of in (ours, theirs))
        is_equal &= abs(statistics.fmean(ours) - statistics.fmean(theirs)) <= noise
    ratios = [theirs / ours for ours, theirs in map(seconds, runs)]
    if is_equal and min(ratios) >= FASTER:
        return "supports"
    return "contradicts" if not is_equal and max(ratios) < FASTER else "inconclusive"


def cpu_minutes(made: dict[str, Any]) -> float:
    """Minutes of the processor that a record's commands took."""
    return sum(one["cpu"] for one in made["clock"]) / 60


def _share(value: float) -> str:
    return f"{value:.3f}"
