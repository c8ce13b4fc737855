"""The table of all claims: each with its source, verdict, number and record, from STUDYs alone.

A page shows it between `<!-- claims -->` and `<!-- /claims -->`, how many claims have which verdict
between `<!-- claims:count -->` and `<!-- /claims:count -->`, and a part's figure, table and
verdicts between `<!-- answer:STUDY PART -->` and `<!-- /answer -->`. All are made anew when a study
ends and by `python -m experiments.common.claims`, and a test fails while a page differs. A claim
whose part has no record yet is open, and its page says so.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsjax.disk import write_whole
from experiments.common import record
from experiments.common.study import Claim, Part, Study, studies

OPEN = "open"
WORDS = ("supports", "contradicts", "inconclusive", "cannot speak", OPEN)
NUMBER = re.compile(r"\{(\w+): ([^{}]+?) / ([^{}]+?)\}")
BLOCK = re.compile(r"(<!-- claims -->\n).*?(<!-- /claims -->)", re.DOTALL)
ANSWER = re.compile(r"(<!-- answer:(?P<study>\w+) (?P<part>\w+) -->\n).*?(<!-- /answer -->)",
                    re.DOTALL)
COUNT = re.compile(r"(<!-- claims:count -->).*?(<!-- /claims:count -->)", re.DOTALL)


@dataclass(frozen=True)
class Row:
    """A claim as the table shows it; verdict: one of WORDS."""

    study: str
    key: str
    says: str
    source: str
    verdict: str
    number: str
    record: str | None


def row(study: Study, claim: Claim) -> Row:
    """A claim's row, from the record it names; open where there is none, or no verdict in it."""
    path = study.folder / "records" / f"{claim.record}.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    told = found.get("verdicts", {}).get(claim.key)
    if claim.verdict is not None and found:
        told = {"verdict": claim.verdict, "number": NUMBER.sub(
            lambda m: record.cell(_record(study, m[1]), m[2], m[3]), claim.number)}
    if told is None:
        return Row(study.name, claim.key, claim.says, claim.source, OPEN, "-", None)
    return Row(study.name, claim.key, claim.says, claim.source, told["verdict"], told["number"],
               str(path.relative_to(record.ROOT)))


def _record(study: Study, name: str) -> dict[str, Any]:
    return json.loads((study.folder / "records" / f"{name}.json").read_text())


def rows(of: Sequence[Study] | None = None) -> list[Row]:
    """Every claim of every study: those of the reports first, by study."""
    found = [row(study, claim) for study in of or studies() for claim in study.claims]
    return sorted(found, key=lambda one: one.source.startswith("none"))


def table(of: Sequence[Row]) -> str:
    """The table as Markdown; records are linked from docs/."""
    lines = ["| claim | source | verdict | our number | record |", "|---|---|---|---|---|"]
    for one in of:
        page = f"[{one.study}](../experiments/{one.study}/README.md)"
        where = f"{page}, [{Path(one.record).stem}](../{one.record})" if one.record else page
        lines.append(f"| {one.says} | {one.source} | {one.verdict} | {one.number} | {where} |")
    return "\n".join(lines)


def count(of: Sequence[Row]) -> str:
    """Say in words how many claims have which verdict."""
    found = Counter(one.verdict for one in of)
    said = {"supports": "supported", "contradicts": "contradicted", "cannot speak":
            "beyond what can be measured here"}
    return f"{len(of)} claims: " + ", ".join(
        f"{found[word]} {said.get(word, word)}" for word in WORDS if found[word])


def answer(study: Study, part: Part) -> str:
    """Figure, table and verdicts of a part, as its study's page shows them."""
    path = study.folder / "records" / f"{part.records[0]}.json"
    if not path.is_file():
        return "Not run yet."
    found, made = json.loads(path.read_text()), []
    if part.arms and (study.folder / "figure.svg").is_file():
        made = [f"![{part.asks}](figure.svg)", ""]
    made += [record.table(found), "", "Verdicts, by the rules above:", ""]
    return "\n".join([*made, *(f"- *{key}*: {one['verdict']}; {one['number']}."
                               for key, one in found["verdicts"].items())])


def fill(text: str, of: Sequence[Row]) -> str:
    """Write table, count and answers into their places in a page."""
    by_name = {study.name: study for study in studies()} if ANSWER.search(text) else {}
    text = ANSWER.sub(lambda m: m[1] + answer(
        by_name[m["study"]], by_name[m["study"]].part(m["part"])) + f"\n{m[4]}", text)
    text = BLOCK.sub(lambda m: f"{m[1]}{table(of)}\n{m[2]}", text)
    return COUNT.sub(lambda m: f"{m[1]}{count(of)}{m[2]}", text)


def fill_pages() -> None:
    """Rewrite the pages that differ."""
    made = rows()
    for page in record.pages():
        text = page.read_text()
        if (filled := fill(text, made)) != text:
            write_whole(page, filled)


def main(argv: Sequence[str] | None = None) -> int:
    """Rewrite table and count; returns the exit status."""
    argparse.ArgumentParser(prog="python -m experiments.common.claims",
                            description="Write the table of claims anew, from studies' records."
                            ).parse_args(argv)
    fill_pages()
    return 0


if __name__ == "__main__":
    sys.exit(main())
