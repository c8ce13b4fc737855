"""Plain and drafted decoding of held-out prompts in turn, by temperature and rows."""

from __future__ import annotations

import dataclasses
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from configs import tiny
from dsjax import infer
from dsjax.infer import Model, Options, Report, Sampling, generate
from dsjax.train import corpus
from experiments.common import record
from experiments.common.command import Asked

DEPTHS, TEMPERATURES, BATCHES = (1, 2), (0.0, 0.7, 1.0), (1, 4, 16)
PROMPTS, PROMPT, NEW = 16, 64, 96
COLUMNS = ("modules", "temperature", "rows", "accepted", "tokens a pass", "tokens/s", "plain",
           "ratio", "min to max")


def main(asked: Asked) -> None:
    """Train what is not trained yet, measure, write the record."""
    steps, repeats = (4, 1) if asked.is_quick else (asked.values["steps"], 5)
    rows = []
    for depth in DEPTHS:
        folder = asked.runs / f"depth_{depth}"
        train(folder, depth, steps)
        model = infer.load(folder, infer.Choice(precision="fp32"))
        texts = prompts(model)
        for temperature in TEMPERATURES:
            for batch in BATCHES:
                rows.append([depth, temperature, batch, *measured(model, texts, temperature, batch,
                                                                  repeats)])
                print(*rows[-1], flush=True)
    asked.write("drafts", f"`tiny` trained for {steps} steps: drafts of its MTP modules on prompts "
                "it has not seen", COLUMNS, rows, prompt_tokens=PROMPT, new_tokens=NEW)


def train(folder: Path, depth: int, steps: int) -> None:
    """Train `tiny` with modules on the embedded corpus; goes on where it stopped."""
    words = ["train", "tiny", "--model.mtp-depth", str(depth), "--train.steps", str(steps),
             "--output.folder", str(folder)]
    subprocess.run([sys.executable, "-m", "dsjax", *words], cwd=record.ROOT, check=True)


def prompts(model: Model) -> list[list[int]]:
    """Pieces of the held-out text, evenly spread."""
    _, heldout = corpus.texts(tiny.config())
    ids = [token for text in heldout for token in model.tokenizer.encode(text)]
    apart = (len(ids) - PROMPT) // (PROMPTS - 1)
    return [ids[i * apart : i * apart + PROMPT] for i in range(PROMPTS)]


def measured(model: Model, texts: list[list[int]], temperature: float, batch: int,
             repeats: int) -> list[Any]:
    """Cells of a row: the two forms take turns, and ratios are of one turn."""
    found: dict[bool, list[Report]] = {False: [], True: []}
    few = texts[: max(batch, 4)]
    for repeat in range(repeats + 1):
        for is_drafting, reports in found.items():
            options = Options(backend=model.backend, draft=is_drafting)
            parts = [generate(model.params, model.cfg, few[i : i + batch],
                              Sampling(temperature, max_new_tokens=NEW, seed=repeat),
                              options).report for i in range(0, len(few), batch)]
            if repeat:  # the first compiles
                reports.append(joined(parts))
    plain, drafted = found[False], found[True]
    ratios = [b.tokens_per_s / a.tokens_per_s for a, b in zip(plain, drafted, strict=True)]
    accepted = [statistics.mean(depths) for depths in zip(*(r.acceptance for r in drafted))]
    return [" / ".join(f"{share:.0%}" for share in accepted),
            f"{statistics.mean(r.tokens_per_pass for r in drafted):.2f}",
            *(f"{statistics.median(r.tokens_per_s for r in reports):,.0f}"
              for reports in (drafted, plain)),
            f"{statistics.median(ratios):.2f}", f"{min(ratios):.2f} to {max(ratios):.2f}"]


def joined(parts: list[Report]) -> Report:
    """Reports of generations one after another, as one."""
    passes = sum(part.passes for part in parts)
    return dataclasses.replace(
        parts[0], passes=passes, decoded=sum(part.decoded for part in parts),
        decode_s=sum(part.decode_s for part in parts),
        acceptance=tuple(sum(a * part.passes for a, part in zip(shares, parts, strict=True))
                         / passes for shares in zip(*(part.acceptance for part in parts))))
