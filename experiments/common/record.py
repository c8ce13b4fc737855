"""A number and where it came from, as JSON; and the blocks of Markdown made from such files.

A record is written by the command that measured it and never edited: claim, value, unit, spread,
seeds, config fingerprint, commit and whether the code was as committed, date, device, versions,
wall time and command. A page shows one between `<!-- record:PATH -->` and `<!-- /record -->`, PATH
from the project's root; `python -m experiments.common.record README.md` writes the blocks anew, and
a test fails while they differ.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
WRITTEN = (":(exclude)*/records/*", ":(exclude)*.md", ":(exclude)*.svg")  # by studies themselves
BLOCK = re.compile(r"(<!-- record:(?P<path>\S+) -->\n).*?(<!-- /record -->)", re.DOTALL)


def environment(command: str) -> dict[str, Any]:
    """What every record says of its circumstances."""
    import jax

    from dsjax.train.platform import versions

    dirty = _git("status", "--porcelain", "--untracked-files=no", "--", ".", *WRITTEN)
    return {
        "command": command,
        "commit": _git("rev-parse", "--short=12", "HEAD"),
        "is_clean": not dirty,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}, {os.cpu_count()} cores",
        "versions": versions(),
    }


def _git(*words: str) -> str:
    try:
        return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True,
                              check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def write(path: Path, claim: str, columns: Sequence[str], rows: Sequence[Sequence[Any]],
          command: str, **more: Any) -> None:
    """Write a record whose table has `columns` and `rows`, with its circumstances."""
    record = {"claim": claim, "columns": list(columns), "rows": [list(r) for r in rows]}
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".part")
    draft.write_text(json.dumps(record | more | environment(command), indent=1) + "\n")
    draft.replace(path)


def table(record: Mapping[str, Any]) -> str:
    """A record as a Markdown table, with a line that says where it was measured."""
    lines = ["| " + " | ".join(record["columns"]) + " |"]
    lines.append("|" + "---|" * len(record["columns"]))
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in record["rows"]]
    jax_version = record["versions"]["jax"]
    lines.append("")
    lines.append(f"`{record['command']}` on {record['device']}, jax {jax_version}, "
                 f"{record['date']}, commit {record['commit']}.")
    return "\n".join(lines)


def fill(text: str) -> str:
    """Write every record's table into its block of a page."""

    def made(match: re.Match) -> str:
        record = json.loads((ROOT / match["path"]).read_text())
        return f"{match[1]}{table(record)}\n{match[3]}"

    return BLOCK.sub(made, text)


def main(pages: Sequence[str]) -> int:
    """Rewrite the blocks of pages; returns the exit status."""
    for page in map(Path, pages):
        page.write_text(fill(page.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
