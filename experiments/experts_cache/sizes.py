"""Generate with caches of several sizes and policies from one trained model, and compare.

The model is exported as a released folder, so that experts are read from files. Every cache must
give the texts that the resident model gives.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsjax import infer
from dsjax.cli.process import experts
from dsjax.infer import Choice, Counts, Options, Room, Sampling
from dsjax.infer.offload.store import Store, split
from dsjax.released import read
from experiments.common import plot, record
from experiments.common.command import Asked
from experiments.experts_cache import STUDY

SHARES, QUICK_SHARES = (0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0), (0.1, 0.5)
PROMPTS = ("ROMEO.", "To be, or not to be", "First Citizen:\nBefore we proceed any further",
           "KING HENRY.\nOnce more unto the breach", "What light through yonder window",
           "Exeunt.\n\nSCENE II.", "My mistress' eyes are nothing like", "LADY MACBETH.\nOut,")
NEW_TOKENS, ROUNDS = 100, 2
COLUMNS = ("room for", "policy", "experts in slots", "fetched ahead", "waited for", "predicted",
           "MB read a token", "tokens a second", "of them waiting")


@dataclass(frozen=True)
class Policy:
    """A cache's first filling, and its look ahead."""

    name: str
    has_loads: bool
    is_ahead: bool


POLICIES = (Policy("last used", False, False), Policy("and measured loads", True, False),
            Policy("and prediction", False, True), Policy("and both", True, True))


def main(asked: Asked) -> None:
    """Train, export, measure, write the record and draw."""
    path = asked.records / "sizes.json"
    if asked.is_redraw:
        draw(json.loads(path.read_text())["measured"], asked.folder / "figure.svg")
        return
    run = Path(asked.values["folder"] or asked.runs / "model")
    steps = 20 if asked.is_quick else None
    if not run.is_dir():
        train(run, steps)
    released = asked.runs / "released"
    shutil.rmtree(released, ignore_errors=True)
    command("convert", "dsjax-to-hf", str(run), str(released))
    whole, resident = reference(released)
    loads = experts.room(experts.ExpertFlags("1GB"), str(run))
    assert loads is not None, "a size was given"
    made = []
    for share in QUICK_SHARES if asked.is_quick else SHARES:
        for policy in POLICIES:
            room = Room(int(share * all_bytes(released)),
                        loads.loads if policy.has_loads else None, policy.is_ahead)
            used = measured(released, room, whole)
            made.append({"share": share, "policy": policy.name} | used)
            print(*row(made[-1]), sep=" | ", flush=True)
    rows = [*map(row, made), ["all, no cache", "", "", "", "", "", "", f"{resident:.0f}", ""]]
    asked.write("sizes", "a cache of experts by size and policy; every text is the resident "
                "model's", COLUMNS, rows, measured=made, resident=resident)
    draw(made, asked.folder / "figure.svg")


def train(folder: Path, steps: int | None) -> None:
    """Train the model of this experiment as the demo trains its own."""
    more = [] if steps is None else ["--train.steps", str(steps), "--output.eval-every", str(steps)]
    command("train", str(STUDY.folder / "model.py"), "--output.folder", str(folder), *more)


def command(*words: str) -> None:
    """Run a command of dsjax."""
    subprocess.run([sys.executable, "-m", "dsjax", *words], cwd=record.ROOT, check=True,
                   stdout=subprocess.DEVNULL)


def all_bytes(folder: Path) -> int:
    """Bytes of all routed experts of a released folder."""
    return Store(split(read.open_folder(folder, mtp=False).weights)[1]).nbytes


def sampling() -> Sampling:
    """Settings of every text; each prompt has the same seed in every cache."""
    return Sampling(temperature=0.8, max_new_tokens=NEW_TOKENS, seed=1)


def reference(folder: Path) -> tuple[list[tuple[int, ...]], float]:
    """Texts of the resident model, and its tokens a second."""
    model = infer.load(folder, Choice("fp32"), silent)
    options = Options(model.backend)
    texts, spent = [], 0.0
    for prompt in PROMPTS:
        ids = model.tokenizer.prompt(prompt)
        done = infer.generate(model.params, model.cfg, [ids], sampling(), options)
        texts.append(done.completions[0].tokens)
        spent += done.report.decode_s
    return texts, (NEW_TOKENS - 1) * len(PROMPTS) / spent


def measured(folder: Path, room: Room, wanted: list[tuple[int, ...]]) -> dict[str, Any]:
    """Counts and times of all prompts but for the first round, in which the cache is new.

    Without measured loads the slots are empty at first: counts are of every round.
    """
    model = infer.load(folder, Choice("fp32", experts=room), silent)
    assert model.experts is not None, "room was asked for"
    options = Options(model.backend, experts=model.experts)
    total, spent, tokens = Counts(), [], 0
    for _ in range(ROUNDS):
        seconds = 0.0
        for prompt, text in zip(PROMPTS, wanted, strict=True):
            ids = model.tokenizer.prompt(prompt)
            done = infer.generate(model.params, model.cfg, [ids], sampling(), options)
            assert done.completions[0].tokens == text, "a cache changes no token"
            used = done.report.decode_experts
            assert used is not None, "a cache counts"
            total = Counts(**{k: v + getattr(used, k) for k, v in vars(total).items()})
            seconds += done.report.decode_s
            tokens += done.report.decoded
        spent.append(seconds)
    model.experts.close()
    return vars(total) | {"slots": model.experts.slots.count, "bytes": room.nbytes,
                          "decoded": tokens, "seconds": spent}


def row(made: dict[str, Any]) -> list[str]:
    """A row of the table."""
    wanted, seconds = made["wanted"], sum(made["seconds"])
    missed = wanted - made["hits"] - made["ahead"]
    predicted = f"{made['right'] / made['expected']:.1%}" if made["expected"] else ""
    return [f"{made['share']:.0%}", made["policy"], f"{made['hits'] / wanted:.1%}",
            f"{made['ahead'] / wanted:.1%}", f"{missed / wanted:.1%}", predicted,
            f"{made['read_bytes'] / made['decoded'] / 1e6:.2f}",
            f"{made['decoded'] / seconds:.0f}", f"{made['waited_s'] / seconds:.0%}"]


def draw(made: list[dict[str, Any]], path: Path) -> None:
    """Hits, what is there in time, and speed against the size of the cache."""
    names = list(dict.fromkeys(m["policy"] for m in made))
    panels = (("experts in slots", lambda m: 100 * m["hits"] / m["wanted"], "% of those wanted"),
              ("in slots or fetched ahead",
               lambda m: 100 * (m["hits"] + m["ahead"]) / m["wanted"], "% of those wanted"),
              ("speed", lambda m: m["decoded"] / sum(m["seconds"]), "tokens a second"))
    with plot.figure(path, width=plot.PAGE, height=2.9, panels=3) as axes:
        for panel, (title, value, unit) in zip(axes, panels, strict=True):
            for name, color in zip(names, plot.COLORS):
                mine = [m for m in made if m["policy"] == name]
                panel.plot([100 * m["share"] for m in mine], [value(m) for m in mine], "o-",
                           color=color, label=name, markersize=3)
            panel.set_title(title)
            panel.set_xlabel("room, % of all experts")
            panel.set_ylabel(unit)
            panel.set_ylim(bottom=0)
        axes[0].legend(loc="lower right")


def silent(sentence: str) -> None:
    """Say nothing."""
