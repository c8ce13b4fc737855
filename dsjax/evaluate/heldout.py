"""Held-out evaluation: likelihood, bits per byte, and how often an MTP draft would be accepted.

The acceptance estimate of depth k is greedy and on real text: the share of positions where module
k's likeliest token equals the main model's likeliest token for the same place (V3 report
sec. 5.4.3 reports 85 to 90 % for the second token).

Axes: B rows, T time, D model, J MTP depth, V vocabulary.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array
from jax.experimental import multihost_utils

from dsjax.config.model import ModelConfig, dropless
from dsjax.evaluate import likelihood
from dsjax.layers.backend import Backend
from dsjax.model import loss as losses
from dsjax.model import mtp, transformer
from dsjax.model.loss import Batch, from_rows
from dsjax.model.transformer import TransformerParams
from dsjax.ops.token_loss import cross_entropy


@struct.dataclass
class HeldoutSums:
    """Sums over one batch."""

    nll: Array  # [1 + J] of the main model, then of each MTP depth; weighted, as targets
    targets: Array  # [1 + J]
    accepted: Array  # [J] drafts that the main model would have chosen too


@dataclass(frozen=True)
class Heldout:
    """Result of an evaluation."""

    nll: float  # negative log-likelihood in nats a target
    bits_per_byte: float
    mtp_nll: list[float]  # in nats a target, by depth
    acceptance: list[float]  # by depth
    targets: int


def remark(found: Heldout) -> str | None:
    """Say what an evaluation could not measure, and why; None if it measured everything."""
    if not found.targets:
        return "the held-out text has no token to predict: there is no held-out loss; give more"
    if not math.isfinite(found.nll):
        return ("the held-out loss is not finite: the parameters may be lost; lower "
                "--learning-rate.peak")
    if not math.isfinite(found.bits_per_byte):
        return ("the held-out text's targets stand for no bytes (documents of one token have none "
                "of their own), so bits per byte are not defined: see nll, or give longer text")
    return None


def values(found: Heldout) -> dict[str, float]:
    """An evaluation as an event of metrics.jsonl has it."""
    named = {"bits_per_byte": found.bits_per_byte, "nll": found.nll,
             "heldout_tokens": found.targets}
    if found.acceptance:
        named |= {"mtp_nll": found.mtp_nll[0], "mtp_acceptance": found.acceptance[0]}
    return named


def recorded(event: Mapping[str, Any]) -> tuple[Heldout, Heldout | None]:
    """Read the result of a run, and its average's if any, from a "final" event of metrics.jsonl."""
    def number(name: str) -> float:
        return math.nan if event.get(name) is None else event[name]

    mtp_nll, acceptance = ([number(name)] if name in event else []
                           for name in ("mtp_nll", "mtp_acceptance"))
    targets = int(event.get("heldout_tokens") or 0)
    found = Heldout(number("nll"), number("bits_per_byte"), mtp_nll, acceptance, targets)
    if "bits_per_byte_average" not in event:
        return found, None
    return found, Heldout(math.nan, number("bits_per_byte_average"), [], [], targets)


HeldoutStep = Callable[[TransformerParams, Batch], HeldoutSums]


def make_heldout_step(cfg: ModelConfig, backend: Backend) -> HeldoutStep:
    """Build the function that sums one batch; jit it. No token is dropped for lack of capacity."""
    cfg = dropless(cfg)

    def heldout_step(p: TransformerParams, batch: Batch) -> HeldoutSums:
        length = batch.tokens.shape[1] - 1
        tokens, segments = batch.tokens[:, :length], batch.segments[:, :length]
        main = transformer.hidden(p, tokens, segments, cfg, backend).x
        embed = functools.partial(transformer.embed, p, backend=backend)
        nll, targets, accepted = [], [], []
        chosen = None
        chain = mtp.chain(p.mtp, main, tokens, segments, embed, cfg, backend)
        for depth, x in enumerate(itertools.chain([main], (made.x for made in chain))):
            at = losses.targets_of(batch, depth + 1)
            found, guess = likelihood.of_hidden(p, x, at.ids, backend)
            chosen = guess if chosen is None else chosen
            is_same = guess == mtp.shift(chosen, depth, length)
            nll.append(cross_entropy(found, at).sum())
            targets.append(at.weights.sum())
            accepted.append(jnp.where(is_same, at.weights, 0).sum())
        return HeldoutSums(jnp.stack(nll), jnp.stack(targets), jnp.stack(accepted)[1:])

    return heldout_step


def evaluate(step: HeldoutStep, p: TransformerParams,
             batches: Iterable[tuple[dict[str, np.ndarray], int]],
             put: Callable[[dict[str, np.ndarray]], Batch] = from_rows) -> Heldout:
    """Sum over (this process's rows of a batch, bytes of their targets) and divide once.

    `put` makes the whole batch of the rows of all processes.
    """
    sums, total_bytes = [], 0
    for batch, size in batches:
        # One at a time: programs queued on devices that share a CPU's threads can wait forever for
        # each other's collectives.
        sums.append(jax.block_until_ready(step(p, put(batch))))
        total_bytes += size
    total = jax.tree.map(lambda *parts: np.sum([np.asarray(a, np.float64) for a in parts], axis=0),
                         *sums)
    counts = np.maximum(total.targets[1:], 1)
    targets, size = int(total.targets[0]), _of_all_processes(total_bytes)
    return Heldout(
        nll=float(total.nll[0]) / targets if targets else math.nan,
        bits_per_byte=float(total.nll[0]) / math.log(2) / size if size else math.nan,
        mtp_nll=[float(v) for v in total.nll[1:] / counts],
        acceptance=[float(v) for v in total.accepted / counts],
        targets=targets,
    )


def _of_all_processes(count: int) -> int:
    """Sum a count over the processes; in halves, as a device has 32 bits."""
    halves = np.array([count >> 30, count & (2**30 - 1)], np.int32)
    high, low = np.reshape(multihost_utils.process_allgather(halves), (-1, 2)).T.tolist()
    return (sum(high) << 30) + sum(low)
