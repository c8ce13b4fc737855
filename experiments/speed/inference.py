"""Speed of decoding and prefill beside transformers, and of the engine beside bare decoding.

Whole processes in turn, ratios within a round, as in training.py.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from dsjax.cli.benches.shapes import Bench, shape_run
from dsjax.errors import UserError
from experiments.common import command
from experiments.common.command import Asked
from experiments.speed import STUDY
from experiments.speed.training import HUGE_PAGES, measure

PEER = Path(__file__).parent / "peer_transformers.py"
COLUMNS = ("work", "rows", "tokens/s", "beside", "tokens/s", "ratio", "min to max", "goal",
           "matmul GFLOP/s", "peer's")
GOALS = {("decode", 1): 5.0, ("decode", 16): 3.0, ("prefill", 1): 1.8, ("serve", 16): 0.9}


def main(asked: Asked) -> None:
    """Run the rounds and write the record."""
    given = asked.values
    if asked.is_quick:
        given = given | {"rounds": 1, "steps": 4}
    elif given["peer_python"] is None:
        raise UserError("there is nothing to compare with: give --peer-python, a Python with torch "
                        "and transformers (experiments/speed/peer_transformers.py says which)")
    rounds = []
    for number in range(given["rounds"]):
        rounds.append(one_round(given))
        print(number, {name: r["tok_s"] for name, r in rounds[-1].items()}, flush=True)
    if given["peer_python"] is None:
        print("without a peer there is no ratio, and no table")
        return
    words = f"{asked.command} --rounds {given['rounds']} --steps {given['steps']}"
    dataclasses.replace(asked, command=words).write(
        "inference",
        "at tiny, context 512, float32, decoding is 5 times as fast as compiled transformers at "
        "one row and 3 times at 16, prefill 1.8 times, and the engine keeps 90 % of it", COLUMNS,
        [summary(*work, rounds) for work in GOALS], rounds=rounds)


def one_round(given: dict[str, Any]) -> dict[str, Any]:
    """Every process once: of each kind of work the peer's, if there is one, and ours."""
    found = {}
    for kind, batch in GOALS:
        if kind != "serve" and given["peer_python"]:
            found[f"peer {kind} {batch}"] = peer(kind, batch, given)
        found[f"{kind} {batch}"] = ours(kind, batch, given["steps"])
    return found


def peer(kind: str, batch: int, given: dict[str, Any]) -> dict[str, Any]:
    """One process of the peer, float32."""
    model = json.dumps(dataclasses.asdict(shape_run(Bench()).model))
    return measure([given["peer_python"], str(PEER), "--mode", kind, "--model", model, "--batch",
                    str(batch), "--seq", "512", "--steps", str(given["steps"])], {})


def ours(kind: str, batch: int, steps: int) -> dict[str, Any]:
    """One process of dsjax."""
    more = [] if kind == "prefill" else ["--steps", str(steps)]
    return measure([sys.executable, "-m", "dsjax", "bench", kind, "--batch-size", str(batch),
                    *more], HUGE_PAGES)


def summary(kind: str, batch: int, rounds: list[dict[str, Any]]) -> list[str]:
    """Row of the table: medians of the rounds, the ratio within rounds with its spread, a goal."""
    mine = f"{kind} {batch}"
    other = f"decode {batch}" if kind == "serve" else f"peer {mine}"
    ratios = [r[mine]["tok_s"] / r[other]["tok_s"] for r in rounds]

    def middle(name: str, key: str = "tok_s") -> float:
        return statistics.median(r[name][key] for r in rounds)

    return [kind, str(batch), f"{middle(mine):,.0f}",
            "bench decode" if kind == "serve" else "transformers", f"{middle(other):,.0f}",
            f"{statistics.median(ratios):.2f}", f"{min(ratios):.2f} to {max(ratios):.2f}",
            f"{GOALS[kind, batch]:g}", f"{middle(mine, 'peak_gflop_s'):,.0f}",
            f"{middle('peer decode 1', 'peak_gflop_s'):,.0f}"]


if __name__ == "__main__":
    sys.exit(command.main(STUDY, "inference"))
