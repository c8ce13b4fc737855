"""Speed of both passes on one core, and the memory of an index."""

from __future__ import annotations

import resource
import time
from pathlib import Path

import numpy as np

from dsjax.data import sources
from dsjax.evaluate.audit import corpus, items, scan
from dsjax.evaluate.audit.scan import Looked, Settings
from experiments.common.command import Asked
from experiments.contamination.overlap import made_up

COLUMNS = ("tasks", "items", "pass", "MB/s", "spread", "index, s", "index, MB", "MB in all")


def main(asked: Asked) -> None:
    """Measure and write the record."""
    repeats = 1 if asked.is_quick else asked.values["repeats"]
    given = [Path(name) for name in asked.values["against"] or ()]
    tasks = {"made-up": [made_up(500 if asked.is_quick else 4000)]}
    if given:
        tasks["given"] = items.tasks(given)
    rows, spreads = [], {}
    for name, own in tasks.items():
        count = sum(len(task.items) for task in own)
        for passes, similarity in (("exact", None), ("exact and near", 0.75)):
            start = time.process_time()
            looked = Looked(own, Settings(similarity=similarity))
            built = time.process_time() - start
            rates = [rate(looked) for _ in range(repeats)]
            spreads[f"{name}, {passes}"] = [round(r, 2) for r in rates]
            there = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
            rows.append([name, f"{count:,}", passes, f"{np.median(rates):.1f}",
                         f"{min(rates):.1f} to {max(rates):.1f}", f"{built:.1f}",
                         f"{looked.bytes / 1e6:.0f}", f"{there:,.0f}"])
            print(*rows[-1], flush=True)
            del looked
    asked.write("rates", "megabytes of text a second of processor time of one core; the embedded "
                "corpus, 5.06 MB", COLUMNS, rows, rates=spreads)


def rate(looked: Looked) -> float:
    """Megabytes a second of processor time."""
    start = time.process_time()
    found = scan.scan(looked, corpus.pieces([sources.EMBEDDED], "text", looked.overlap))
    return found.characters / 1e6 / (time.process_time() - start)
