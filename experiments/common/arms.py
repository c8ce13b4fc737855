"""Arms of an experiment: the same run with one thing changed, each trained once and kept.

An arm trains in a folder as `dsjax train` does (checkpoints, metrics), so it may be killed at any
time and goes on where it stopped; several processes may share the arms. When one is done, its
curve is a JSON record that holds the config and names the commit, and the folder's checkpoints
are removed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dsjax.config.machine import MachineConfig
from dsjax.config.run import OutputConfig, RunConfig
from dsjax.config.stored import renamed
from dsjax.layers.backend import Backend
from dsjax.report.metrics import read_metrics
from dsjax.train import loop
from experiments.common import record


@dataclass(frozen=True)
class Arm:
    """One training run: its name, what changed in words, its config, and its backend if unusual."""

    name: str
    change: str
    run: RunConfig
    backend: Backend | None = None

    @property
    def stem(self) -> str:
        """Name of the record and of the folder."""
        tokens = self.run.train.batch_size * self.run.train.seq_len
        return f"{self.run.name}-{tokens}-{self.name}-seed{self.run.seed}"


@contextlib.contextmanager
def claimed(arm: Arm, runs: Path) -> Iterator[bool]:
    """Yield True where this process may train the arm until the block ends, not another."""
    runs.mkdir(parents=True, exist_ok=True)
    with (runs / f"{arm.stem}.lock").open("w") as lock:  # freed with the process, however it ends
        yield _locked(lock)


def _locked(lock: Any) -> bool:
    """Take a lock, if need be at the second try: the index may look at it just then."""
    for wait in (0.2, 0.0):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(wait)
    return False


def train(arm: Arm, records: Path, runs: Path, command: str) -> dict[str, Any]:
    """The record of an arm; trains it, or goes on with it, where there is none of this config.

    Raises KeyboardInterrupt when the run was told to stop; it has saved its state.
    """
    path, config = records / f"{arm.stem}.json", plain(arm.run)
    if path.exists():
        kept = _read(path)
        if (said := changed(kept["config"], config, "run")) is not None:
            raise ValueError(f"{path} records {said}; remove it to measure anew")
        return kept
    out = runs / arm.stem
    output = dataclasses.replace(arm.run.output, folder=str(out))
    outcome = loop.train(dataclasses.replace(arm.run, output=output), backend=arm.backend)
    if not outcome.is_complete:
        raise KeyboardInterrupt
    metrics = out / "metrics.jsonl"
    events, evaluations = read_metrics(metrics, "train"), read_metrics(metrics, "eval")
    made = {
        "claim": f"{arm.run.name}: {arm.change}",
        "arm": arm.name,
        "seeds": [arm.run.seed],
        "heldout_nats": {str(e["step"]): round(float(e["nll"]), 5) for e in evaluations},
        "skipped": int(events[-1]["skipped"]),
        "next_token": [round(float(e["loss"]), 5) for e in events],
        "config": config,
    } | record.environment(command)
    records.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".part")
    draft.write_text(json.dumps(made) + "\n")
    draft.replace(path)
    shutil.rmtree(out / "checkpoints")
    return made


def train_all(of: Sequence[Arm], records: Path, runs: Path, command: str) -> tuple[int, list[str]]:
    """Train every arm that has no record; says how far it is after each.

    Returns an exit status, which is 130 if a run was told to stop, and the arms that other
    processes hold. The same call goes on from there; several processes may make it at once.
    """
    import jax

    jax.config.update("jax_compilation_cache_dir", str(runs.resolve() / "compiled"))
    left = []
    for number, arm in enumerate(of, 1):
        with claimed(arm, runs) as is_mine:
            if not is_mine:
                left.append(arm.stem)
                continue
            is_new = not (records / f"{arm.stem}.json").exists()
            try:
                train(arm, records, runs, command)
            except KeyboardInterrupt:
                print(f"stopped in {arm.stem}; the same command goes on from there",
                      file=sys.stderr)
                return 130, left
        if is_new:
            print(f"arm {number} of {len(of)}: {arm.stem} is recorded", flush=True)
        jax.clear_caches()
    if left:
        print(f"left to another process: {', '.join(left)}; the last to finish writes the table")
    return 0, left


def kept(of: Sequence[Arm], records: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The records there are, and the names of those that are missing."""
    paths = [records / f"{arm.stem}.json" for arm in of]
    found = [_read(path) for path in paths if path.exists()]
    return found, [path.stem for path in paths if not path.exists()]


def _read(path: Path) -> dict[str, Any]:
    """A record, its config in today's names."""
    found = json.loads(path.read_text())
    return found | {"config": renamed(found["config"])}


def plain(run: RunConfig) -> dict[str, Any]:
    """The part of a config that says what is computed, as JSON holds it: no machine, no folder."""
    return json.loads(json.dumps(dataclasses.asdict(dataclasses.replace(
        run, machine=MachineConfig(), output=OutputConfig()))))


def changed(kept: Any, now: Any, name: str) -> str | None:
    """The first field of a kept config that is another now; fields added since do not count."""
    if isinstance(kept, dict) and isinstance(now, dict):
        found = (changed(kept[key], now.get(key), f"{name}.{key}") for key in kept)
        return next((said for said in found if said is not None), None)
    return None if kept == now else f"{name}={kept}, not {now}"


def smooth(values: Sequence[float], decay: float = 0.9) -> np.ndarray:
    """Exponential moving average that starts at the first value."""
    out = np.array(values, np.float64)
    for i in range(1, len(out)):
        out[i] = decay * out[i - 1] + (1 - decay) * out[i]
    return out


def relative_difference(curve: Sequence[float], base: Sequence[float]) -> np.ndarray:
    """(smoothed curve - smoothed base) / smoothed base, step by step."""
    a, b = smooth(curve), smooth(base)
    return (a - b) / b
