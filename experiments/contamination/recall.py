"""Share of planted copies that are found, by how they were changed."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from pathlib import Path

from dsjax.evaluate.audit import corpus, findings, items, scan
from experiments.common.command import Asked
from experiments.contamination import planted

COLUMNS = ("copies", "words", "planted", "exact", "near", "either", "found of as many not planted")
Change = Callable[[str, random.Random], str]
CHANGES: dict[str, Change] = {
    "verbatim": lambda text, draw: text,
    "case and marks": lambda text, draw: planted.edited(text, draw, rate=0),
    "5 % swapped, 5 % dropped": lambda text, draw: planted.edited(text, draw),
    "10 % swapped, 10 % dropped": lambda text, draw: planted.edited(text, draw, rate=0.1),
}


def main(asked: Asked) -> None:
    """Plant, audit, count and write the record."""
    number = 50 if asked.is_quick else 500
    rows = []
    for least, most in ((20, 120), (13, 30)):
        for name, change in CHANGES.items():
            exact, near, either, wrong = found(change, number, least, most)
            rows.append([name, f"{least} to {most}", f"{number:,}", f"{exact:.1%}", f"{near:.1%}",
                         f"{either:.1%}", f"{wrong:.2%}"])
            print(*rows[-1], flush=True)
    asked.write("recall", "planted questions that are found, and items found that were not planted",
                COLUMNS, rows, seeds=[10])


def found(change: Change, number: int, least: int, most: int) -> tuple[float, ...]:
    """Shares of planted items found exactly, nearly, either way; and of as many others."""
    questions = planted.items(2 * number, 10, least, most)
    draw = random.Random(11)
    plants = [change(row["question"], draw) for row in questions[:number]]
    texts = [{"text": text} for text in planted.corpus(plants, 12, 2 * number)]
    with tempfile.TemporaryDirectory() as folder:
        task = planted.write_lines(Path(folder) / "task.jsonl", questions)
        path = planted.write_lines(Path(folder) / "corpus.jsonl", texts)
        looked = scan.Looked(items.tasks([task]), scan.Settings())
        (dirty,) = findings.of(scan.scan(
            looked, corpus.pieces([str(path)], "text", looked.overlap)))
    there = {row["id"] for row in questions[:number]}
    exact = {one.item.id for one in dirty.dirty if one.documents}
    near = {one.item.id for one in dirty.dirty if one.similarity}
    either = exact | near
    return (*(len(one & there) / number for one in (exact, near, either)),
            len(either - there) / number)
