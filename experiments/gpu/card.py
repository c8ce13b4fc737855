"""Every part on the device at hand, one after another; one that fails is a row of the table.

A GPU gets the sizes that matter; anything else the same checks at small sizes, without times.
Every row is printed as it is made, so that a call that is cut off has said what it found. The
record is named after the device.
"""

from __future__ import annotations

import gc
import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from experiments.common.command import Asked
from experiments.gpu import blocks, steps
from experiments.gpu.blocks import Row

BUDGET_S = 540.0
"""Seconds after which no part is begun."""
COLUMNS = ("part", "form", "value", "unit", "held to", "holds")
Measure = Callable[[bool], Iterator[Row]]
PARTS: dict[str, Measure] = {
    "ceilings": blocks.ceilings,
    "attention": blocks.attention,
    "experts": blocks.experts,
    "fp8": blocks.fp8,
    "exactness": steps.exactness,
    "step": steps.training,
    "decoding": steps.decoding,
    "start": steps.start,
}


def main(asked: Asked) -> int:
    """Run every part and write the record; status 1 where one failed or a check does not hold."""
    device = jax.devices()[0]
    is_small = asked.is_quick or device.platform != "gpu"
    rows = list(run(is_small))
    name = "-".join(re.findall(r"[a-z0-9]+", device.device_kind.lower()))
    asked.write(name, f"one card, {device.device_kind}", COLUMNS, [row.cells for row in rows],
                is_small=is_small)
    return int(any(row.holds is False for row in rows))


def run(is_small: bool, parts: dict[str, Measure] = PARTS,
        budget_s: float = BUDGET_S) -> Iterator[Row]:
    """Rows of every part; a part that raises is a row that does not hold."""
    began = time.perf_counter()
    for name, measure in parts.items():
        if time.perf_counter() - began > budget_s:
            yield _said(Row(name, "not begun", f"{budget_s:.0f} s are over", "", None, False))
            continue
        try:
            for row in measure(is_small):
                yield _said(row)
        except Exception as error:  # the next part may do
            yield _said(Row(name, "failed", f"{type(error).__name__}: {str(error)[:200]}", "",
                            None, False))
        gc.collect()
        jax.clear_caches()


def _said(row: Row) -> Row:
    made: dict[str, Any] = dict(zip(COLUMNS, row.cells, strict=True))
    print(json.dumps(made), flush=True)
    return row
