"""Row length and batch size over training (V3 section 4.2: batch 3072 to 15360 over 469B tokens).

Shorter rows first: a batch of rows is cut into more, shorter rows, so that the tokens a step, and
the tokens themselves, stay the same. Progress is counted in steps for lengths and in tokens for the
batch ramp. The report does not give the ramp's shape: linear in tokens is an assumption.
"""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dsjax.config.run import SequenceStage, TrainConfig
from dsjax.config.schedule import whole_steps


@dataclass(frozen=True)
class BatchRamp:
    """Rows a batch: from `start` to `end` over `tokens`, in multiples of `multiple`.

    V3: BatchRamp(3072, 15360, 469_000_000_000). `tokens` may count steps if the caller does.
    """

    start: int
    end: int
    tokens: int
    multiple: int = 1

    def __post_init__(self) -> None:
        """Refuse a ramp that goes down or whose ends the multiple does not divide."""
        if not 1 <= self.start <= self.end or self.tokens < 0:
            raise ValueError(
                f"ramp from {self.start} to {self.end} over {self.tokens}: use 1 <= start <= end "
                "and tokens >= 0"
            )
        if self.multiple < 1 or self.start % self.multiple or self.end % self.multiple:
            raise ValueError(
                f"multiple={self.multiple} does not divide start={self.start} and end={self.end}; "
                "choose a common divisor"
            )


def batch_size_at(tokens_seen: int, ramp: BatchRamp) -> int:
    """Return the rows of the batch after `tokens_seen` tokens, rounded down to a multiple."""
    if tokens_seen >= ramp.tokens:
        return ramp.end
    grown = (ramp.end - ramp.start) * tokens_seen // ramp.tokens  # exact in integers
    return ramp.start + grown // ramp.multiple * ramp.multiple


def rows_of(train: TrainConfig, step: int) -> int:
    """Return the rows of the batch that follows `step` steps of a run, before it is cut."""
    if train.batch_size_start is None:
        return train.batch_size
    steps = whole_steps(train.batch_size_ramp_steps, train.steps)
    ramp = BatchRamp(train.batch_size_start, train.batch_size, steps, train.batch_size_multiple)
    return batch_size_at(step, ramp)


def length_of(train: TrainConfig, step: int) -> int:
    """Return the row length of the batch that follows `step` steps of a run."""
    stages = [SequenceStage(whole_steps(stage.from_step, train.steps), stage.seq_len)
              for stage in train.curriculum]
    return length_at(step, stages, train.seq_len)


def tokens_after(train: TrainConfig, steps: int) -> int:
    """Return the tokens that the first `steps` steps of a run with these settings read."""
    rising = _rows_of_the_ramp(train)
    last = len(rising) - 1
    return (rising[min(steps, last)] + max(steps - last, 0) * train.batch_size) * train.seq_len


@functools.lru_cache(maxsize=4)
def _rows_of_the_ramp(train: TrainConfig) -> list[int]:
    """Rows read in the first 0, 1, ... steps, up to the end of the ramp or of the run."""
    ramp = whole_steps(train.batch_size_ramp_steps, train.steps)
    ramp = 0 if train.batch_size_start is None else ramp
    rows = (rows_of(train, step) for step in range(min(ramp, train.steps)))
    return list(itertools.accumulate(rows, initial=0))


def length_at(step: int, stages: Sequence[SequenceStage], length: int) -> int:
    """Return the row length at `step`: that of the last stage begun, or `length` before any."""
    begun = [stage for stage in stages if stage.from_step <= step]
    return max(begun, key=lambda stage: stage.from_step).seq_len if begun else length


def recut(batch: dict[str, np.ndarray], length: int) -> dict[str, np.ndarray]:
    """Cut rows [n, T+1] into [n * T / t, t+1], t = `length`, neighbors sharing one token.

    Every target stays a target exactly once; segments count from 1 again in each row.
    """
    whole = batch["tokens"].shape[1] - 1
    if length < 1 or whole % length:
        choices = [t for t in range(1, whole + 1) if whole % t == 0]
        raise ValueError(f"length={length} does not divide T={whole}; choose from {choices}")
    starts = np.arange(whole // length) * length
    where = starts[:, None] + np.arange(length + 1)  # [T/t, t+1]
    cut = {name: a[:, where].reshape(-1, length + 1) for name, a in batch.items()}
    cut["weights"][:, 0] = 0
    first = cut["segments"][:, :1]
    cut["segments"] = np.where(cut["segments"] > 0, cut["segments"] - first + 1, 0)
    return cut
