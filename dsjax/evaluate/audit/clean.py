"""A corpus written without its hits, in the format that it has.

As GPT-3 was cleaned (arXiv 2005.14165 appendix C; the numbers stand in lm-evaluation-harness's
lm_eval/decontamination/janitor.py): a hit is cut out with 200 characters on either side, what is
left of a document falls apart into documents, those below 200 characters are dropped, and a
document that is cut more than ten times is dropped whole. Or every document with a hit is dropped.

Files and documents without hits keep their bytes; token shards keep their ids and are cut between
tokens. The new folder gets its name when it is whole, or nothing is left of it.
"""

from __future__ import annotations

import bisect
import dataclasses
import gzip
import lzma
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from dsjax import disk
from dsjax.data import readers, shards, sources
from dsjax.data.tokenizers import tokenizer
from dsjax.errors import UserError
from dsjax.evaluate.audit import corpus
from dsjax.evaluate.audit.findings import Spans

MARGIN = LEAST = 200
MOST_CUTS = 10
Cut = Literal["passages", "documents"]
_REMEDY = "name another --clean"
_NEVER = 2**62


@dataclass
class Cleaning:
    """A cleaning under way: which stretches go, and how much has gone."""

    spans: Mapping[tuple[str, int], Spans]
    field: str
    cut: Cut
    documents: int = 0
    """Documents that had hits."""
    dropped: int = 0
    """Documents that are gone whole."""
    written: int = 0
    """Documents and parts of documents that are left."""
    names: set[Path] = dataclasses.field(default_factory=set)

    def kept(self, path: str, place: int) -> list[tuple[int, int]] | None:
        """Stretches of a document that stay, None where it has no hit."""
        spans = self.spans.get((path, place))
        if spans is None:
            self.written += 1
            return None
        self.documents += 1
        return kept(spans) if self.cut == "passages" else []

    def count(self, parts: int) -> None:
        """Count the parts that a document with hits left."""
        self.written += parts
        self.dropped += not parts


def kept(spans: Spans) -> list[tuple[int, int]]:
    """Stretches of a document that stay; the last has no end yet."""
    wide: Spans = []
    for start, stop in spans:
        start, stop = max(start - MARGIN, 0), stop + MARGIN
        if wide and start <= wide[-1][1]:
            wide[-1] = wide[-1][0], stop
        else:
            wide.append((start, stop))
    if len(wide) > MOST_CUTS:
        return []
    edges = [0, *(edge for span in wide for edge in span), _NEVER]
    return [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if b - a >= LEAST]


def write(names: Iterable[str], out: Path, cleaning: Cleaning) -> None:
    """Write the sources without the hits into the folder `out`, which is not there yet."""
    check(out)
    _sweep(out)
    draft = out.with_name(f".{out.name}.{os.getpid()}.part")
    disk.make_folder(draft, _REMEDY)
    try:
        for name in names:
            _write_source(name, draft, cleaning)
        if not cleaning.written:
            raise UserError(f"every document has hits, so {out} would be empty; give --cut "
                            "passages, a longer --words, or another corpus")
        try:
            os.rename(draft, out)
        except OSError as error:
            raise UserError(f"{out} cannot be made ({disk.cause(error)}); {_REMEDY}") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _sweep(out: Path) -> None:
    """Remove what cleanings into this folder left behind that were killed."""
    for left in out.parent.glob(f".{out.name}.*.part"):
        owner = left.name.removesuffix(".part").rpartition(".")[2]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists() and Path("/proc/self").exists():
            shutil.rmtree(left, ignore_errors=True)


def check(out: Path) -> None:
    """Refuse a folder that is there, before any work."""
    if os.path.lexists(out):
        raise UserError(f"{out} is there already; {_REMEDY}")
    disk.try_folder(out, _REMEDY)


def _write_source(name: str, draft: Path, cleaning: Cleaning) -> None:
    kind = corpus.kind(name)
    if kind == "embedded":
        parts = ((place, work) for place, work in enumerate(sources.shakespeare(), 1))
        target = _target(draft, Path(f"{name}.txt"), cleaning)
        with _refusing(target), target.open("w", encoding="utf-8", newline="") as file:
            _write_text(name, parts, file, cleaning)
        return
    if kind == "shards":
        for folder in corpus.shard_folders(name):
            _write_shards(folder, draft / folder.relative_to(name), cleaning)
        return
    root = Path(name) if Path(name).is_dir() else None
    for path in corpus.files(name):
        target = _target(draft, path.relative_to(root) if root else Path(path.name), cleaning)
        with _refusing(target):
            _write_file(path, target, cleaning)


def _target(draft: Path, name: Path, cleaning: Cleaning) -> Path:
    """A new file's path; two sources may not write the same."""
    if name in cleaning.names:
        raise UserError(f"two files of the corpus are called {name}; clean one source at a time")
    cleaning.names.add(name)
    disk.make_folder((draft / name).parent, _REMEDY)
    return draft / name


@contextmanager
def _refusing(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{target.name} cannot be written ({disk.cause(error)}); make room or "
                        f"{_REMEDY}") from None


def _write_file(path: Path, target: Path, cleaning: Cleaning) -> None:
    if not any(there == str(path) for there, _ in cleaning.spans):
        cleaning.written += 1
        shutil.copyfile(path, target)
        return
    with _packed(target) as file:
        if readers.is_lines(path):
            _write_lines(path, file, cleaning)
        else:
            parts = readers.parts(path, cleaning.field, lambda size: None)
            _write_text(str(path), parts, file, cleaning)


def _packed(target: Path) -> AbstractContextManager[IO[str]]:
    """Open a file for writing, packed as its name says."""
    settings: dict[str, Any] = {"encoding": "utf-8", "newline": ""}
    if target.suffix.lower() == ".gz":
        return gzip.open(target, "wt", **settings)
    if target.suffix.lower() == ".xz":
        return lzma.open(target, "wt", **settings)
    if target.suffix.lower() == ".zst":
        import zstandard

        return zstandard.open(target, "wt", **settings)
    return target.open("w", **settings)


def _write_text(path: str, parts: Iterable[tuple[int, str]], file: IO[str],
                cleaning: Cleaning) -> None:
    """Write the documents of a text, form feeds between them."""
    is_first, before = True, 0
    writing: _Part | None = None
    for place, text in parts:
        if place != before:
            if writing:
                writing.end()
            before, writing = place, _Part(path, place, cleaning)
        assert writing is not None, "a document has begun"
        for is_begun, piece in writing.add(text):
            file.write(("\f" if is_begun and not is_first else "") + piece)
            is_first = False
    if writing:
        writing.end()


class _Part:
    """A document of a text, whose stretches that stay come out as its parts go in."""

    def __init__(self, path: str, place: int, cleaning: Cleaning) -> None:
        kept = cleaning.kept(path, place)
        self._cleaning, self._has_hits = cleaning, kept is not None
        self._kept = [(0, _NEVER)] if kept is None else kept
        self._at, self._waiting, self._begun, self._is_fresh = 0, "", 0, True

    def add(self, text: str) -> Iterator[tuple[bool, str]]:
        """Yield (begins a document, text)."""
        start, self._at = self._at, self._at + len(text)
        for number, (a, b) in enumerate(self._kept, 1):
            piece = text[max(a - start, 0) : max(b - start, 0)]
            if not piece and not (self._is_fresh and not self._has_hits):
                continue
            self._is_fresh = False
            if number == self._begun:
                yield False, piece
                continue
            # The last stretch is written when it is long enough; the others are known to be.
            self._waiting += piece
            if b != _NEVER or len(self._waiting) >= LEAST or not self._has_hits:
                self._begun = number
                yield True, self._waiting
                if self._has_hits:
                    self._cleaning.count(1)
                self._waiting = ""

    def end(self) -> None:
        """Count a document of which nothing is left."""
        if self._has_hits and not self._begun:
            self._cleaning.count(0)


def _write_lines(path: Path, file: IO[str], cleaning: Cleaning) -> None:
    for number, line in readers.lines(path):
        kept = cleaning.kept(str(path), number)
        if kept is None:
            file.write(line if line.endswith("\n") else line + "\n")
            continue
        row = disk.parse_json(line, f"{path} line {number}", readers.MEND)
        parts = [row[cleaning.field][a:b] for a, b in kept]
        parts = [part for part in parts if len(part) >= LEAST]
        for part in parts:
            file.write(disk.to_json({**row, cleaning.field: part}) + "\n")
        cleaning.count(len(parts))


def _write_shards(folder: Path, target: Path, cleaning: Cleaning) -> None:
    spoken = tokenizer.load(folder / shards.TOKENIZER)
    opened = shards.read(folder, spoken)
    with shards.Writer(target, spoken) as writer:
        for number in range(opened.documents):
            ids = opened.document(number)
            kept = cleaning.kept(str(folder), number + 1)
            parts = [ids] if kept is None else _cut_ids(ids, kept, spoken.pieces)
            for part in parts:
                writer.add(part, sum(len(spoken.pieces[i]) for i in part.tolist()))
            if kept is not None:
                cleaning.count(len(parts))


def _cut_ids(ids: np.ndarray, kept: list[tuple[int, int]],
             pieces: tuple[bytes, ...]) -> list[np.ndarray]:
    """Stretches of a document's ids; none of one that is no text, whose places are not known."""
    data = [pieces[i] for i in ids.tolist()]
    try:
        text = b"".join(data).decode("utf-8")
    except UnicodeDecodeError:
        return []
    ends = np.cumsum([len(piece) for piece in data]).tolist()
    made = []
    for a, b in kept:
        start, stop = len(text[:a].encode()), len(text[:b].encode())
        first = bisect.bisect_left([0, *ends], start)  # the first token that begins there or later
        last = bisect.bisect_right(ends, stop)  # the last that ends there or before
        if len(text[a:b]) >= LEAST and first < last:
            made.append(ids[first:last])
    return made
