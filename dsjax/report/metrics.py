"""Metrics of a run: one JSON line per event.

Before a checkpoint the loop writes the metrics of every step taken, so that a resumed run's file
lacks none; lines of steps that are run again are cut off when the file is opened, so it holds none
twice.
"""

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dsjax.report import lines

CLOCK = ("time", "tok_s", "mfu", "rollout_tok_s", "train_tok_s", "seconds")
"""Names of what two runs of the same numbers differ in."""
EARLIER: dict[str, dict[str, str]] = {
    "next_token": {"loss": "total_loss", "next_token": "loss"},
    "rate": {"rate": "learning_rate"},
    "nats": {"nats": "nll", "mtp_nats": "mtp_nll"},
}
"""By a name that only earlier versions gave: names of such an event, and what they are now."""


class MetricWriter:
    """Appends events to a JSONL file, and to TensorBoard when given a folder for it."""

    def __init__(
        self,
        path: str | Path,
        resume_step: int | None = None,
        tensorboard: str | Path | None = None,
        say: lines.Say = print,
        labels: Sequence[str] = (),
    ) -> None:
        """Open `path`: anew, or keeping the lines up to the step that a run resumes from.

        Refused where another writer has it open. `say` gets a sentence about damaged lines;
        `labels` name the layers that arrays have a row or a number of.
        """
        self.path = Path(path)
        self._file = lines.LineFile(self.path, resume_step, say)
        self._board, self._labels = None, labels
        if tensorboard is not None:
            from tensorboardX import SummaryWriter

            purge = None if resume_step is None else resume_step + 1
            self._board = SummaryWriter(str(tensorboard), purge_step=purge)

    def write(self, step: int, kind: str, values: Mapping[str, Any]) -> None:
        """Append one event of a `kind` (train, eval); values are numbers or NumPy arrays.

        Numbers keep every bit of a float32; those that are not finite become null.
        """
        plain = {name: _plain(v) for name, v in values.items()}
        self._file.append({"step": step, "kind": kind, "time": round(time.time(), 3)} | plain)
        if self._board is not None:
            for name, value in plain.items():
                self._show(f"{kind}/{name}", value, step)

    def _show(self, name: str, value: Any, step: int) -> None:
        """Give the board a number; of a list a curve, and of a matrix a histogram, each layer."""
        assert self._board is not None, "the caller has looked"
        if isinstance(value, int | float):
            self._board.add_scalar(name, value, step)
        elif isinstance(value, list):
            for i, one in enumerate(value):
                label = self._labels[i].replace(" ", "_") if i < len(self._labels) else str(i)
                if isinstance(one, list) and one and None not in one:
                    self._board.add_histogram(f"{name}/{label}", np.asarray(one), step)
                elif not isinstance(one, list):
                    self._show(f"{name}/{label}", one, step)

    def sync(self) -> None:
        """Have the disk hold what was written: before the checkpoint that continues it."""
        self._file.sync()

    def close(self) -> None:
        """Close the file and the board."""
        self._file.close()
        if self._board is not None:
            self._board.close()


class Unwritten:
    """The writer of every process but the first: all of them have the same numbers."""

    def write(self, step: int, kind: str, values: Mapping[str, Any]) -> None:
        """Write nothing."""

    def sync(self) -> None:
        """Nothing is written."""

    def close(self) -> None:
        """Nothing is open."""


Writer = MetricWriter | Unwritten


def open_writer(path: Path, resume_step: int | None, board: Path | None,
                say: lines.Say = print, labels: Sequence[str] = ()) -> Writer:
    """The writer of this process."""
    if jax.process_index() > 0:
        return Unwritten()
    return MetricWriter(path, resume_step, board, say, labels)


def read_metrics(path: str | Path, kind: str | None = None,
                 say: lines.Say | None = None) -> list[dict[str, Any]]:
    """Events of a JSONL file in order of steps (of one kind, when given).

    An event that is there twice counts once, as last written; a torn last line is left out, and so
    are damaged ones, of which `say` gets a sentence.
    """
    events, damaged = lines.read(Path(path))
    if damaged and say is not None:
        say(f"{damaged} damaged {'line' if damaged == 1 else 'lines'} of {path} left out")
    last = {(e["step"], e["kind"]): _named(e) for e in events if kind in (None, e["kind"])}
    return sorted(last.values(), key=lambda e: e["step"])


def _named(event: dict[str, Any]) -> dict[str, Any]:
    """Rename what an earlier version wrote."""
    for mark, renamed in EARLIER.items():
        if mark in event:
            event = {renamed.get(name, name): value for name, value in event.items()}
    return event


def recorded_loads(events: list[dict[str, Any]], layers: int) -> tuple[list[int], np.ndarray]:
    """Steps [S] and loads [S, L, E] of the evaluations that recorded those of `layers` layers."""
    found = [(e["step"], _matrix(e.get("loads"))) for e in events]
    experts = next((a.shape[1] for _, a in reversed(found) if len(a) == layers), 0)
    chosen = [(step, a) for step, a in found if a.shape == (layers, experts) and a.size]
    return [step for step, _ in chosen], np.array([a for _, a in chosen])


def _matrix(values: Any) -> np.ndarray:
    """Numbers as [rows, columns]; of no rows where they are not that."""
    try:
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        array = np.zeros(0)
    return array if array.ndim == 2 and np.isfinite(array).all() else np.zeros((0, 0))


def max_violation(loads: np.ndarray) -> np.ndarray:
    """MaxVio = (highest load - mean) / mean, per layer (arXiv 2408.15664). loads [L, E] -> [L].

    On the host, where it need not queue behind a step; 0 where nothing was routed.
    """
    loads = np.asarray(loads, np.float64)
    mean = loads.mean(-1)
    return np.divide(loads.max(-1) - mean, mean, out=np.zeros_like(mean), where=mean > 0)


def dead_experts(loads: np.ndarray) -> int:
    """Number of experts that no token of these loads chose. loads [L, E]."""
    return int((np.asarray(loads) == 0).sum())


def _plain(value: Any) -> Any:
    """Value as JSON holds it: int, str, bool, shortest float32 decimals, null, or lists of them."""
    if isinstance(value, str | bool | int) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    array = np.asarray(value)
    if array.ndim:
        return [_plain(item) for item in array]
    if array.dtype.kind in "iub":
        return array.item()
    single = array.astype(np.float64) if array.dtype == np.float64 else array.astype(np.float32)
    return float(str(single)) if np.isfinite(single) else None
