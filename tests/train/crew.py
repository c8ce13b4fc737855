"""Several processes that train together on this machine, for the tests that need real ones.

The children run `dsjax train` on a config file. They compile with little optimization: their
steps are milliseconds in any case, and each process compiles for itself.
"""

from __future__ import annotations

import dataclasses
import io
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from dsjax.config.model import ModelConfig
from dsjax.config.parallel import ParallelConfig
from dsjax.config.run import RunConfig
from dsjax.config.stored import run_to_json
from dsjax.report.metrics import read_metrics
from dsjax.train import loop
from tests.train.small_run import MODEL, small_run, write_text

Process = subprocess.Popen[str]

ROOT = Path(__file__).parents[2]
CONFIG = """
from dsjax.config.stored import run_from_json


def config():
    return run_from_json({path!r})
"""
PATIENCE_S = 400

MIXTURE = dataclasses.replace(MODEL, layers=1, dense_layers=0, mtp_depth=0)
"""Losses ahead make a step twice as long to compile; test_equal_layouts.py has them on devices."""
AHEAD = dataclasses.replace(MIXTURE, mtp_depth=1)
DENSE = dataclasses.replace(MODEL, layers=1, moe=None, mtp_depth=0)
"""Compiles in a third of the time: for what does not depend on the model."""


def run_on(folder: Path, name: str, layout: ParallelConfig, length: int,
           model: ModelConfig = MIXTURE) -> RunConfig:
    """A run by rules that its length does not change."""
    if not (folder / "words.txt").exists():
        write_text(folder / "words.txt")
    run = small_run(folder / name, folder / "words.txt", length)
    return dataclasses.replace(
        run,
        parallel=layout,
        model=model,
        learning_rate=dataclasses.replace(run.learning_rate, constant_steps=10**6),
        loss=dataclasses.replace(run.loss, mtp_late_from=1.0, bias_until=1.0),
        optimizer=dataclasses.replace(run.optimizer, ema_decay=0.0),
        output=dataclasses.replace(run.output, eval_every=0, save_every=0),
    )


def lasting(run: RunConfig, length: int, save_every: int = 0) -> RunConfig:
    """The same run to another step."""
    return dataclasses.replace(run, train=dataclasses.replace(run.train, steps=length),
                               output=dataclasses.replace(run.output, save_every=save_every))


def here(run: RunConfig) -> str:
    """Train in this process; return what was said."""
    said = io.StringIO()
    loop.train(run, Console(file=said, width=300))
    return said.getvalue()


def words(run: RunConfig) -> list[str]:
    """The command that trains a run."""
    stored = Path(run.output.folder).with_suffix(".json")
    run_to_json(run, stored)
    config = stored.with_suffix(".py")
    config.write_text(CONFIG.format(path=str(stored)))
    return [sys.executable, "-m", "dsjax", "train", str(config)]


def environment(run: RunConfig, count: int) -> dict[str, str]:
    """Environment of each of `count` processes of a run: its share of the devices among it."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"
    return {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(run.parallel.devices // count),
            "XLA_FLAGS": flags.strip(), "PYTHONPATH": str(ROOT)}


def start(run: RunConfig, count: int) -> list[Process]:
    """Start `count` processes of a run, which find each other by flags."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    command, env = words(run), os.environ | environment(run, count)
    who = ["--coordinator", address, "--processes", str(count), "--process"]
    return [open_process([*command, *who, str(i)], env) for i in range(count)]


def open_process(command: Sequence[str], env: dict[str, str], **more) -> Process:
    """Start a process whose words are kept."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, env=env, text=True, **(streams | more))


def finish(processes: Sequence[Process]) -> list[str]:
    """Wait for all of them to end well; return what each said."""
    try:
        said = [p.communicate(timeout=PATIENCE_S)[0] for p in processes]
    finally:
        end(processes)
    assert [p.returncode for p in processes] == [0] * len(processes), "\n".join(said)
    return said


def end(processes: Sequence[Process]) -> None:
    """Kill what still runs, and close what was not read."""
    for p in processes:
        if p.poll() is None:
            p.kill()
        if p.stdout is not None and not p.stdout.closed:
            p.communicate()


def steps(run: RunConfig) -> list[dict]:
    """Steps that a run has reported so far."""
    path = Path(run.output.folder) / "metrics.jsonl"
    return read_metrics(path, "train") if path.exists() else []


def wait_for_step(run: RunConfig, step: int, processes: Sequence[Process]) -> None:
    """Return when a run has reported a step."""
    until = time.monotonic() + PATIENCE_S
    while not any(e["step"] >= step for e in steps(run)):
        over = [p for p in processes if p.poll() is not None]
        assert not over, over[0].communicate()[0]
        assert time.monotonic() < until, f"no step {step} in {PATIENCE_S} seconds"
        time.sleep(0.02)


def curve(run: RunConfig) -> np.ndarray:
    """Numbers of a run's steps, exactly as written: [steps, numbers]."""
    events = steps(run)
    assert [e["step"] for e in events] == list(range(1, len(events) + 1))
    names = [n for n in ("loss", "mtp_loss", "max_vio", "grad_norm") if n in events[0]]
    return np.array([[e[n] for n in names] for e in events])


def heldout(run: RunConfig) -> tuple[float, int]:
    """Bits per byte and tokens of a run's last evaluation."""
    event = read_metrics(Path(run.output.folder) / "metrics.jsonl", "final")[-1]
    return event["bits_per_byte"], event["heldout_tokens"]
