"""A number and where it came from, as JSON; and the blocks of Markdown made from such files.

A record is written by the command that measured it and never edited: claim, value, unit, spread,
seeds, config fingerprint, commit and whether the code was as committed, date, device, processor,
versions, wall time and command. A record of speed holds the matmul rate of the same run, too:
without it a rate says as much of the machine as of the code.

A page shows a record between `<!-- record:PATH -->` and `<!-- /record -->`, PATH from the project's
root, and one number of it between `<!-- cell:PATH ROW / COLUMN -->` and `<!-- /cell -->`: ROW is
how the row begins, `*` the largest of the column. `python -m experiments.common.record README.md`
writes both anew, and a test fails while they differ. A record that was measured with changes that
are not committed says `"is_clean": false`, and so does its table.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsjax.disk import write_whole
from dsjax.errors import UserError, printable

ROOT = Path(__file__).resolve().parents[2]
WRITTEN = (":(exclude)*/records/*", ":(exclude)*.md", ":(exclude)*.svg")  # by studies themselves
MEASURED = ("dsjax", "configs", "experiments")  # where a file that git does not know counts, too
BLOCK = re.compile(r"(<!-- record:(?P<path>\S+) -->\n).*?(<!-- /record -->)", re.DOTALL)
CELL = re.compile(r"(?P<open><!-- cell:(?P<path>\S+) (?P<row>[^>]+?) / (?P<column>[^>]+?) -->)"
                  r"[^<]*(?P<close><!-- /cell -->)")


@dataclass(frozen=True)
class Tree:
    """The commit that is checked out, and files that are not as it has them; None without git."""

    commit: str
    changed: tuple[str, ...] | None

    @property
    def is_clean(self) -> bool:
        """True where the commit holds what is measured."""
        return self.changed == ()

    @property
    def said(self) -> str:
        """The reason why the tree is not clean, for a sentence."""
        if self.changed is None:
            return "git does not say which commit this is"
        more = f" and {len(self.changed) - 1} more files" if len(self.changed) > 1 else ""
        return f"{self.changed[0]}{more} are not as committed"


def tree() -> Tree:
    """Return the commit that is checked out now, and what differs from it."""
    edited = _git("status", "--porcelain", "--untracked-files=no", "--", ".", *WRITTEN)
    new = _git("ls-files", "--others", "--exclude-standard", "--", *MEASURED, *WRITTEN)
    commit = _git("rev-parse", "--short=12", "HEAD")
    if edited is None or new is None or commit is None:
        return Tree("unknown", None)
    return Tree(commit, (*(line[3:] for line in edited.splitlines()), *new.splitlines()))


def environment(command: str, began: Tree | None = None) -> dict[str, Any]:
    """Circumstances that every record states; began: the tree when measuring began."""
    import jax

    from dsjax.runtime.header import versions
    from experiments.common import machines

    now = tree()
    first = began or now
    is_same = first.commit == now.commit or _git(
        "diff", "--quiet", first.commit, now.commit, "--", ".", *WRITTEN) is not None
    return {
        "command": command,
        "commit": first.commit,
        "is_clean": first.is_clean and now.is_clean and is_same,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}, {os.cpu_count()} cores",
        "processor": machines.processor(),
        "versions": versions(),
    }


def _git(*words: str) -> str | None:
    """Return what git prints, None where it is not there or refuses."""
    try:
        return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True,
                              check=True).stdout.rstrip()
    except (OSError, subprocess.CalledProcessError):
        return None


def write(path: Path, claim: str, columns: Sequence[str], rows: Sequence[Sequence[Any]],
          command: str, began: Tree | None = None, **more: Any) -> dict[str, Any]:
    """Write a record whose table has `columns` and `rows`, with its circumstances; returns it."""
    record = {"claim": claim, "columns": list(columns), "rows": [list(r) for r in rows]}
    record |= more | environment(command, began)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(record, indent=1) + "\n")
    return record


def table(record: Mapping[str, Any]) -> str:
    """A record as a Markdown table, with a line that says where it was measured.

    Older records name no processor.
    """
    lines = ["| " + " | ".join(record["columns"]) + " |"]
    lines.append("|" + "---|" * len(record["columns"]))
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in record["rows"]]
    jax_version = record["versions"]["jax"]
    where = ", ".join(record[key] for key in ("device", "processor") if key in record)
    for dtype, rate in record.get("matmul_gflop_s", {}).items():
        where += f", {rate:,} GFLOP/s in {dtype}"
    mark = "" if record["is_clean"] else " with changes that were not committed"
    lines.append("")
    lines.append(f"`{record['command']}` on {where}, jax {jax_version}, "
                 f"{record['date']}, commit {record['commit']}{mark}.")
    return "\n".join(lines)


def cell(record: Mapping[str, Any], row: str, column: str) -> str:
    """One entry of a record's table: in the one row that begins so, or the largest for `*`."""
    names = record["columns"]
    if column not in names:
        raise UserError(f"there is no column {column!r}; choose from {', '.join(names)}")
    at = names.index(column)
    if row == "*":
        return max((str(r[at]) for r in record["rows"]), key=float)
    found = [str(r[at]) for r in record["rows"] if " ".join(map(str, r)).startswith(row)]
    if len(found) != 1:
        raise UserError(f"{len(found)} rows begin with {row!r}; write so much that one does")
    return found[0]


def fill(text: str) -> str:
    """Write every record's table, and every number that is named, into its place in a page."""

    def read(match: re.Match) -> dict[str, Any]:
        return json.loads((ROOT / match["path"]).read_text())

    text = BLOCK.sub(lambda m: f"{m[1]}{table(read(m))}\n{m[3]}", text)
    return CELL.sub(
        lambda m: m["open"] + cell(read(m), m["row"], m["column"]) + m["close"], text)


def pages() -> list[Path]:
    """Every page that may show records."""
    found = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"),
             *(ROOT / "experiments").rglob("*.md")]
    return sorted(found)


def fill_pages(paths: Sequence[Path] | None = None) -> None:
    """Rewrite the blocks of pages that differ from their records; of all, if none is named."""
    for page in paths if paths is not None else pages():
        text = page.read_text()
        if (made := fill(text)) != text:
            write_whole(page, made)


def main(argv: Sequence[str] | None = None) -> int:
    """Rewrite the blocks of pages; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m experiments.common.record",
                                     description="Write the tables of pages anew, from records.")
    parser.add_argument("page", nargs="*", type=Path, help="Markdown files; every page, if none")
    asked = parser.parse_args(argv)
    try:
        for page in asked.page:
            if not page.is_file():
                raise UserError(f"{page} is no file; name Markdown pages, or none for all")
        fill_pages(asked.page or None)
    except UserError as error:
        print(printable(f"experiments: {error}"), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
