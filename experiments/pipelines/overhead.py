"""Cost of the executor: a pipeline of one rank beside the plain step, on the same microbatches.

Both make the gradients of the same batch on one device, in turn, round after round; the overhead is
the median over rounds of one time divided by the other's, less one. Times are CPU seconds of all
threads, which other processes on the machine disturb less than those of a clock on the wall.
"""

from __future__ import annotations

import dataclasses
import time

import jax

from configs import tiny
from dsjax.config.run import PrecisionConfig
from dsjax.pipeline.instructions import compile_table, shortest
from dsjax.pipeline.schedules.build import build
from experiments.common.command import Asked
from experiments.pipelines import built

MICROBATCHES, ROUNDS = 4, 15


def main(asked: Asked) -> None:
    """Time both in turn, write the record."""
    rows, found = [], []
    base, rounds = tiny.config(), 2 if asked.is_quick else ROUNDS
    for remat in ("none",) if asked.is_quick else ("none", "v3"):
        train = dataclasses.replace(base.train, microbatches=MICROBATCHES)
        run = dataclasses.replace(base, train=train, precision=PrecisionConfig("fp32"),
                                  machine=dataclasses.replace(base.machine, remat=remat))
        table = build("1f1b", 1, MICROBATCHES)
        programs = {"plain": built.plain(run),
                    "piped": built.piped(run, compile_table(shortest(table)))}
        p, batch = built.inputs(run)
        outcome = jax.device_get(programs["piped"](p, batch))
        total = float(jax.device_get(programs["plain"](p, batch))[1])
        assert abs(float(outcome.total) - total) <= 1e-6 * total
        taken = built.in_turn(programs, run, rounds, time.process_time)
        ratios = sorted(b / a for a, b in zip(taken["plain"], taken["piped"], strict=True))
        middle, quarter = rounds // 2, rounds // 4
        each = {name: sorted(times)[middle] for name, times in taken.items()}
        rows.append([remat, f"{1e3 * each['plain']:.0f}", f"{1e3 * each['piped']:.0f}",
                     f"{ratios[middle] - 1:+.1%}",
                     f"{ratios[quarter] - 1:+.1%} to {ratios[-1 - quarter] - 1:+.1%}"])
        found.append({"remat": remat, "seconds": taken, "overhead": ratios[middle] - 1})
    asked.write(
        "overhead",
        "a pipeline of one rank costs less than 5 % over the plain step",
        ["remat", "plain step CPU-ms", "pipeline of one rank CPU-ms", "overhead",
         "middle half of rounds"],
        rows, unit="CPU-ms, median of rounds in turn; tiny, 8 x 256 tokens, float32",
        rounds=rounds, microbatches=MICROBATCHES, measured=found,
    )
