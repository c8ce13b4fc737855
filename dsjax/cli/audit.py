"""`dsjax audit CORPUS --against FILES`: the items of tasks that stand in a training corpus."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from dsjax import disk
from dsjax.config.flags.flag_tree import Word
from dsjax.data import sources
from dsjax.disk import to_json
from dsjax.errors import UserError, printable, say
from dsjax.evaluate.audit import clean, corpus, findings, items, report, scan, scores
from dsjax.evaluate.audit.clean import Cleaning, Cut
from dsjax.evaluate.audit.scan import Settings

MOST_WORDS = 100
SECONDS_A_LINE = 10


@dataclass(frozen=True)
class Audit:
    """Find the items of tasks in a corpus, verbatim or with words changed.

      dsjax audit shakespeare --against gsm8k,mmlu --data data/eval
      dsjax audit 'books/*.jsonl.zst' --against data/eval/*.jsonl --out runs/audit
      dsjax audit books --against math500.jsonl --clean books-clean
      dsjax audit runs/data --against gsm8k --scores runs/demo/evaluate

    An item is dirty where a stretch of 13 of its words stands in the corpus, case and punctuation
    apart (GPT-3 appendix C), or where three quarters of a field's words stand in a passage in their
    order (near copies, by MinHash).
    """

    corpus: Annotated[tuple[str, ...], Word("[SOURCE ...]")] = (sources.EMBEDDED,)
    """Files, folders or globs of text or JSONL (.gz, .xz, .zst too), token shards, or
    `shakespeare`."""
    against: tuple[str, ...] = ()
    """Tasks that `dsjax evaluate` knows, with commas between them, and files of others, as JSONL
    (.gz, .xz, .zst too)."""
    data: Path = Path("data/eval")
    """Folder of the named tasks' files."""
    words: int = 13
    """Words of a stretch that counts; 8 finds more, and more that is chance."""
    common: int = 10
    """A stretch that stands in more documents than this is a common phrase and does not count."""
    near: bool = True
    """Look for near copies, too; needs datasketch."""
    similarity: float = 0.75
    """Share of a field's words that a near copy has in their order."""
    field: str = "text"
    """Field of a JSONL line that holds the document."""
    worst: int = 3
    """Items of each task to show beside their passages."""
    out: Path | None = None
    """Folder to write report.json and dirty.jsonl into: every dirty item with its passage."""
    clean: Path | None = None
    """New folder for the corpus without its hits, in the format that it has."""
    cut: Cut = "passages"
    """Take hits out with 200 characters on either side, as GPT-3, or documents with hits whole."""
    scores: Path | None = None
    """The --out of `dsjax evaluate`: show each task's score on its clean and its dirty items."""
    json: bool = False
    """Print the report as JSON."""


def main(args: Audit) -> int:
    """Run the command; returns the exit status."""
    start = time.perf_counter()
    _check(args)
    settings = Settings(args.words, args.common, args.similarity if args.near else None)
    tasks = items.tasks(args.against, args.data)
    size = corpus.size(args.corpus)
    looked = scan.Looked(tasks, settings)
    with _progress(size) as tell:
        found = scan.scan(looked, corpus.pieces(args.corpus, args.field, looked.overlap, tell))
    dirty = findings.of(found)
    seen = scores.read(args.scores, dirty) if args.scores else []
    made = report.as_json(found, dirty, args.corpus, seen)
    made["seconds"] = round(time.perf_counter() - start, 2)
    if args.out:  # what was found is kept, whatever becomes of a clean corpus
        report.write(args.out, made, dirty)
    if args.clean:
        made["clean"] = _clean(args, args.clean, found)
        made["seconds"] = round(time.perf_counter() - start, 2)
        if args.out:
            report.write(args.out, made, dirty)
    _print(args, made, dirty, seen)
    return 0


def _check(args: Audit) -> None:
    """Refuse what cannot be done, before any work."""
    if not args.against:
        raise UserError("--against names no task; give names, as gsm8k,mmlu, or JSONL files")
    if not 1 <= args.words <= MOST_WORDS:
        raise UserError(f"--words {args.words} is no length of a stretch; use 13, or 8 to "
                        f"{MOST_WORDS}")
    if args.common < 1:
        raise UserError(f"--common {args.common} lets no stretch count; use at least 1")
    if not 0.5 <= args.similarity <= 1:
        raise UserError(f"--similarity {args.similarity} is outside of 0.5 to 1, where copies "
                        "are; use 0.75")
    if args.worst < 0:
        raise UserError(f"--worst {args.worst} is no number of items; use 0 for none")
    if args.clean:
        clean.check(args.clean)
    if args.out:
        disk.try_folder(args.out, "name another --out")


def _clean(args: Audit, out: Path, found: scan.Found) -> dict[str, Any]:
    """Write the corpus without its hits."""
    cleaning = Cleaning(findings.spans(found), args.field, args.cut)
    clean.write(args.corpus, out, cleaning)
    return {"folder": str(out), "documents_with_hits": cleaning.documents,
            "documents_dropped": cleaning.dropped}


def _print(args: Audit, made: dict[str, Any], dirty: list[findings.TaskDirt],
           seen: list[scores.Score]) -> None:
    if args.json:
        print(to_json(made))
        return
    from dsjax.terminal import Console

    console = Console()
    for task in dirty:
        for drawn in report.worst(task, args.worst):
            console.print(drawn)
    console.print_whole(report.table(dirty))
    if seen:
        console.print_whole(report.score_table(seen))
    count = made["documents"]
    console.print(f"{count:,} document{'s' * (count != 1)} of {made['characters']:,} characters "
                  f"in {made['seconds']:.1f} s; {made['documents_with_hits']:,} with hits")
    if args.clean:
        told = made["clean"]
        console.print(f"without them: {printable(told['folder'])}, {told['documents_dropped']:,} "
                      "documents dropped whole")
    if args.out:
        console.print(f"every dirty item: {printable(args.out / report.DIRTY)}")


@contextmanager
def _progress(size: int) -> Iterator[Callable[[int], None]]:
    """Show bytes read on standard error: a bar, or lines off a terminal."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from dsjax.terminal import Console

    console = Console(stderr=True)
    if console.is_terminal:
        columns = (TextColumn("reading"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as bar:
            task = bar.add_task("", total=size)
            yield lambda read: bar.update(task, advance=read)
        return
    done, last = 0, time.monotonic()

    def tell(read: int) -> None:
        nonlocal done, last
        done += read
        if time.monotonic() - last >= SECONDS_A_LINE:
            last = time.monotonic()
            say(f"read {done:,} of {size:,} bytes")

    yield tell
