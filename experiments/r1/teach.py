"""Run of `dsjax rl r1_zero_tiny` in a process of its own, kept as a record that says all of it.

A run that was stopped goes on where it stands: the same command starts the same child again, whose
checkpoints are a step apart. Results do not depend on other work on the machine; seconds do, so
they stand beside the seconds that others had of the processors meanwhile.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from dsjax.checkpoint import files
from dsjax.config.load import load
from dsjax.config.run import RunConfig
from dsjax.config.stored import run_from_json
from dsjax.disk import write_whole
from dsjax.errors import UserError
from dsjax.report.metrics import read_metrics
from experiments.common import arms, machines, record
from experiments.common.command import Asked

CONFIG = "r1_zero_tiny"
SEEDS = (0, 1, 2)
CURVES = ("reward", "length", "entropy", "constant_groups", "truncated", "mismatch_k3",
          "equal_routes", "seconds")
"""Numbers of a step that a record keeps."""
QUICK: dict[str, Any] = {
    "train.steps": 12, "train.batch-size": 8, "train.seq-len": 64, "model.d-model": 32,
    "model.layers": 2, "model.dense-dim": 48, "model.moe.expert-dim": 16, "rl.level": 3,
    "rl.steps": 2, "rl.prompts": 4, "rl.samples": 4, "rl.eval-prompts": 8, "rl.eval-every": 1,
    "rl.max-prompt-tokens": 6, "rl.max-new-tokens": 10, "rl.base-right": 0.0,
    "rl.pass-samples": 4,
}
"""Flags of the small form, which accepts any base."""


def seeds(asked: Asked) -> tuple[int, ...]:
    """Seeds of bases and of all that follows from them."""
    return SEEDS[:1] if asked.is_quick else SEEDS


def config() -> RunConfig:
    """The config whose name the command gives."""
    return load(CONFIG)


def teach(asked: Asked, arm: str, seed: int, samples: int, flags: Sequence[str] = (),
          prepare: Callable[[Path], None] | None = None) -> dict[str, Any]:
    """Return the record of an arm's run; runs it, or goes on with it, where there is none.

    samples: of each question, for pass@k. prepare: called with the folder before its first start.
    """
    path, folder = asked.records / f"{arm}-seed{seed}.json", asked.runs / f"{arm}-seed{seed}"
    if path.is_file():
        return json.loads(path.read_text())
    words = [sys.executable, "-m", "dsjax", "rl", CONFIG, "--seed", str(seed), "--output.folder",
             str(folder), "--rl.pass-samples", str(samples), *flags]
    words += [f"--{name}={value}" for name, value in small(asked).items()]
    if prepare is not None and not folder.exists():
        prepare(folder)
    print(f"{arm}, seed {seed}: {' '.join(['dsjax', *words[3:5]])} in {folder}", flush=True)
    seconds = folder.with_suffix(".clock")
    _timed(words, seconds)
    made = {"claim": f"{CONFIG}: {arm}", "arm": arm, "seeds": [seed]} | told(folder)
    made["clock"] = [json.loads(line) for line in seconds.read_text().splitlines()]
    return keep(asked, made)


def keep(asked: Asked, made: dict[str, Any]) -> dict[str, Any]:
    """Write the record of an arm's seed, with its circumstances; returns it."""
    made["cores"] = os.cpu_count()
    if asked.is_quick:
        made["is_quick"] = True
    made |= record.environment(asked.command, asked.began)
    path = asked.records / f"{made['arm']}-seed{made['seeds'][0]}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(made, default=float) + "\n")
    print(f"{made['arm']}, seed {made['seeds'][0]} is recorded", flush=True)
    return made


def base(asked: Asked, seed: int) -> Path:
    """Folder of the base that `zero` begins with; made as there, by one rollout of its command."""
    found = child(asked, f"base-seed{seed}", "rl", CONFIG, {
        "seed": seed, **small(asked), "rl.pass-samples": 16, "rl.steps": 1})
    return found / "base"


def child(asked: Asked, name: str, verb: str, of: str | Path, flags: dict[str, Any]) -> Path:
    """Run `dsjax VERB OF` with flags to its end, once; returns its folder, which has the name.

    A second call, or one after it was stopped, does what is left.
    """
    folder, done = asked.runs / name, asked.runs / f"{name}.done"
    if not done.is_file():
        flags = flags | {"output.folder": folder}
        print(f"{name}: dsjax {verb}", flush=True)
        _timed([sys.executable, "-m", "dsjax", verb, str(of),
                *(f"--{key}={value}" for key, value in flags.items())],
               asked.runs / f"{name}.clock")
        done.touch()
    return folder


def small(asked: Asked) -> dict[str, Any]:
    """Flags of `dsjax rl` in the quick form."""
    return QUICK if asked.is_quick else {}


def clock(asked: Asked, names: Sequence[str]) -> list[dict[str, float]]:
    """Seconds of some children."""
    return [json.loads(line) for name in names
            for line in (asked.runs / f"{name}.clock").read_text().splitlines()]


def curves(folder: Path) -> dict[str, Any]:
    """Numbers of the steps, exams and passes of an RL run, from its folder."""
    steps, exams, passes = (read_metrics(folder / "metrics.jsonl", kind)
                            for kind in ("train", "exam", "pass"))
    names = [name for name in (*CURVES, "rule_colon", "rule_preference") if name in steps[0]]
    return {
        "curves": {name: [event[name] for event in steps] for name in names},
        "exams": [{name.removeprefix("exam_"): event[name] for name in event
                   if name == "step" or name.startswith("exam_")} for event in exams],
        "passes": [{name: event[name] for name in event if name not in ("kind", "time")}
                   for event in passes]}


def told(folder: Path) -> dict[str, Any]:
    """Numbers of a finished run, from its folder."""
    exams, passes = (read_metrics(folder / "metrics.jsonl", kind) for kind in ("exam", "pass"))
    run = dataclasses.replace(run_from_json(folder / "config.json"), init_from=None)
    return {
        "base_steps": max(files.steps(folder / "base" / "checkpoints")),
        **curves(folder),
        "seconds_of_passes": round(sum(
            after["time"] - max(exam["time"] for exam in exams if exam["step"] == after["step"])
            for after in passes), 1),
        "config": arms.plain(run),
    }


def _timed(words: Sequence[str], clock: Path) -> None:
    """Run a command to its end and note its seconds, also when it is stopped.

    Raises:
        UserError: it failed.
    """
    clock.parent.mkdir(parents=True, exist_ok=True)
    began, own, busy = time.perf_counter(), _children(), machines.busy_seconds()
    with _terminable():
        process = subprocess.Popen(words, cwd=record.ROOT)
        try:
            status = process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise
        finally:
            wall, cpu = time.perf_counter() - began, _children() - own
            others = max(machines.busy_seconds() - busy - cpu, 0.0)
            with clock.open("a") as lines:
                lines.write(json.dumps({"wall": round(wall, 1), "cpu": round(cpu, 1),
                                        "others": round(others, 1)}) + "\n")
    if status in (130, 143, -signal.SIGINT, -signal.SIGTERM):
        raise KeyboardInterrupt
    if status:
        raise UserError(f"`{' '.join(['dsjax', *words[3:5]])}` ended with status {status}; what it "
                        "said stands above")


def _children() -> float:
    """Seconds of the processors that this process's finished children had."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end a child, too, whose run then saves itself."""
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


