"""One prompt of 128K tokens at `tiny`'s size: by the command `dsjax generate`, and by the engine.

The model reads the embedded corpus and has taken a few steps of training, as what it says does not
change how long it takes. The engine reads the prompt in pieces (chunked prefill) through pages; the
command reads it at once in the expanded form.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax

from dsjax import infer
from dsjax.config.load import load
from dsjax.config.run import OutputConfig
from dsjax.data import sources
from dsjax.errors import UserError
from dsjax.infer.engine.device import Device, Setting
from dsjax.infer.engine.engine import Engine
from dsjax.train import loop
from experiments.common.command import Asked

POSITIONS = 131_072
NEW = 8
CHUNK = 1024
COLUMNS = ("by", "prompt, tokens", "new tokens", "MB of cache", "bytes a token", "prefill, s",
           "prompt tokens/s", "decoded tokens/s", "compiled in, s")


def main(asked: Asked) -> None:
    """Answer a prompt both ways, or one, and write the record."""
    positions = 1024 if asked.is_quick else asked.values["positions"]
    way = asked.values["way"]
    if way not in (None, *WAYS):
        raise UserError(f"--way {way!r} is neither of {' and '.join(WAYS)}; leave it out for both")
    folder = _trained(asked.runs / "tiny")
    text = _text(folder, positions - NEW, asked.runs / "prompt.txt")
    path = asked.records / "prompt.json"
    kept = json.loads(path.read_text())["cases"] if path.is_file() else {}
    for name in [way] if way else WAYS:
        kept[f"{name} {positions}"] = found = WAYS[name](folder, text, positions)
        print(name, found, flush=True)
    rows = [[found["by"], f"{found['prompt']:,}", found["new"], f"{found['cache'] / 1e6:.1f}",
             found["bytes"], f"{found['prefill']:.0f}",
             f"{found['prompt'] / found['prefill']:,.0f}", f"{found['decode']:.1f}",
             f"{found['compile']:.0f}"]
            for found in sorted(kept.values(), key=lambda one: (one["by"], one["prompt"]))]
    asked.write("prompt", "long prompts answered at `tiny` in float32, greedily", COLUMNS, rows,
                cases=kept)


def _trained(folder: Path) -> Path:
    """A folder with `tiny` after a few steps; one that is there stays."""
    run = load("tiny")
    run = dataclasses.replace(
        run, train=dataclasses.replace(run.train, steps=4, seq_len=128),
        optimizer=dataclasses.replace(run.optimizer, ema_decay=0.0),
        output=OutputConfig(folder=str(folder), eval_every=0, save_every=0))
    if not loop.train(run).is_complete:
        raise KeyboardInterrupt
    return folder


def _text(folder: Path, tokens: int, path: Path) -> Path:
    """Write a text that is so many tokens to the folder's tokenizer."""
    words = infer.load(folder).tokenizer
    ids = words.prompt("\n".join(sources.shakespeare())[: 8 * tokens])[:tokens]
    while ids and len(made := words.prompt(words.decode(ids))) > tokens:  # cut where words end
        ids = ids[: -(len(made) - tokens)]
    path.write_text(words.decode(ids))
    return path


def by_command(folder: Path, text: Path, positions: int) -> dict[str, Any]:
    """Run `dsjax generate` as a user would."""
    command = [sys.executable, "-m", "dsjax", "generate", str(folder), "--prompt-file", str(text),
               "--context", str(positions), "--max-new-tokens", str(NEW), "--precision", "fp32",
               "--temperature", "0", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    prompt = len(infer.load(folder).tokenizer.prompt(text.read_text()))
    bytes_ = found["cache_bytes_per_token"]
    return {"by": "dsjax generate", "prompt": prompt, "new": found["new_tokens"], "bytes": bytes_,
            "cache": bytes_ * positions, "prefill": found["prefill_ms"] / 1e3,
            "decode": found["tok_s"], "compile": found["compile_s"],
            "said": done.stderr.strip().splitlines(), "text": found["completions"][0]["text"]}


def by_engine(folder: Path, text: Path, positions: int) -> dict[str, Any]:
    """Serve the prompt alone, in pieces."""
    began = time.perf_counter()
    model = infer.load(folder, infer.Choice("fp32"))
    device = Device(model, Setting(slots=1, max_len=positions, chunk=min(CHUNK, positions // 4)))
    engine = Engine(device)
    compiled = time.perf_counter() - began
    prompt, times = model.tokenizer.prompt(text.read_text()), []
    ids: list[int] = []

    def take(output: Any) -> None:
        ids.extend(output.tokens)
        times.append(time.perf_counter())

    began = time.perf_counter()
    engine.add(prompt, infer.Sampling(temperature=0, max_new_tokens=NEW), take)
    while engine.step():
        pass
    held = jax.tree.leaves(device.served.pools.main)  # [1, pages, positions of a page, ...]
    bytes_ = sum(a.nbytes / (a.shape[1] * a.shape[2]) for a in held)
    return {"by": f"the engine, pieces of {device.setting.chunk:,}", "prompt": len(prompt),
            "new": len(ids), "bytes": round(bytes_), "cache": bytes_ * positions,
            "prefill": times[0] - began, "decode": (len(ids) - 1) / (times[-1] - times[0]),
            "compile": compiled,
            "text": model.tokenizer.decode(ids)}


WAYS = {"generate": by_command, "engine": by_engine}
