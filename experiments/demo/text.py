"""Run the demo in a folder of its own and write its record."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from experiments.common import record
from experiments.common.command import Asked

QUICK = ("--train.steps", "20", "--output.eval-batches", "2")


def main(asked: Asked) -> None:
    """Run, read the summary, write the record."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "dsjax", "demo", "--output.folder", folder]
        command += QUICK if asked.is_quick else ()
        subprocess.run(command, check=True, cwd=record.ROOT)
        found = json.loads((Path(folder) / "summary.json").read_text())
    rows = [
        ["held-out bits per byte", f"{found['bits_per_byte']:.3f}"],
        ["the same, averaged parameters", f"{found['bits_per_byte_average']:.3f}"],
        ["byte 5-gram on the same blocks", f"{found['five_gram']:.3f}"],
        ["MTP drafts the main model would have chosen", f"{found['mtp_acceptance']:.1%}"],
        ["tokens a pass when drafting, sampled", f"{found['tokens_per_pass']:.2f}"],
        ["optimizer steps", str(found["steps"])],
        ["minutes, installation not counted", f"{found['seconds'] / 60:.1f}"],
    ]
    asked.write("demo", "the demo learns real text", ["demo", "value"], rows, summary=found,
                seeds=[0])
