"""Documents from files, the corpus that ships with dsjax, and the held-out split.

A document is a str. Plain text is one document a file, or several separated by form feeds; JSONL
is one document a line, in a field. Either may be packed as .gz, .xz or .zst. Whatever cannot be
read is refused with its place; nothing is skipped except blank lines and blank pages.
"""

import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import resources
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

from dsjax.errors import UserError

EMBEDDED = "shakespeare"
BLOCK = 8192
_LINES = (".jsonl", ".ndjson")
_PACKED = (".gz", ".xz", ".zst")


def shakespeare() -> list[str]:
    """Return the embedded corpus: 42 works, 5.06 MB of ASCII (corpus/ATTRIBUTION.md)."""
    packed = resources.files("dsjax.data").joinpath("corpus/shakespeare.txt.xz").read_bytes()
    return lzma.decompress(packed).decode("ascii").split("\f")


def documents(
    sources: Sequence[str | Path],
    *,
    field: str = "text",
    progress: Callable[[int], None] = lambda size: None,
) -> Iterator[str]:
    """Yield the documents of files, folders, globs, or `shakespeare`, sorted within each source.

    `progress` is told how many more bytes on disk have been read (see `size_on_disk`).
    """
    for source in sources:
        if _is_embedded(source):
            for work in shakespeare():
                yield work
                progress(len(work))
        else:
            for path in find(source):
                yield from _read(path, field, progress)


def size_on_disk(sources: Sequence[str | Path]) -> int:
    """Return the total that `documents` will report to `progress`."""
    return sum(
        sum(map(len, shakespeare()))
        if _is_embedded(source)
        else sum(path.stat().st_size for path in find(source))
        for source in sources
    )


def find(source: str | Path) -> list[Path]:
    """Return the files that a path, a folder (searched through) or a glob names, sorted."""
    path = Path(source)
    if path.is_file():
        files = [path]
    elif path.is_dir():
        files = [p for p in path.rglob("*") if not _is_hidden(p.relative_to(path))]
    elif any(c in str(source) for c in "*?["):
        root = Path(path.anchor) if path.anchor else Path()
        files = list(root.glob(str(path.relative_to(root) if path.anchor else path)))
    else:
        raise UserError(f"{source} does not exist; give a file, a folder, a glob or '{EMBEDDED}'")
    files = sorted(p for p in files if p.is_file())
    if not files:
        raise UserError(f"{source} holds no files; give a file, a folder, a glob or '{EMBEDDED}'")
    return files


def split(
    texts: Iterable[str], fraction: float, *, block: int | None = None
) -> tuple[list[str], list[str]]:
    """Return (training documents, held-out documents); no character is in both, none is lost."""
    pieces = list(split_stream(texts, fraction, block=block))
    return [t for held, t in pieces if not held], [t for held, t in pieces if held]


def split_stream(
    texts: Iterable[str], fraction: float, *, block: int | None = None
) -> Iterator[tuple[bool, str]]:
    """Yield (is held out, piece): every n-th block of all documents is held out, 1/n = `fraction`.

    Both sides thus have the same distribution. A block is about `block` characters, cut after a
    line end; a document keeps what lies between its held-out blocks as pieces. By default 8 KiB,
    or less where the whole text would make fewer than four held-out blocks.
    """
    if not 0 <= fraction < 1:
        raise UserError(f"held-out fraction {fraction} is outside [0, 1)")
    texts = iter(texts)
    if fraction == 0:
        yield from ((False, text) for text in texts)
        return
    if block is None:
        block, texts = _block_size(texts, fraction)
    count, held_out = 0, 0
    for text in texts:
        kept = 0
        for start, stop in _blocks(text, block):
            count += 1
            if round(count * fraction) == held_out:
                continue
            held_out += 1
            if start > kept:
                yield False, text[kept:start]
            yield True, text[start:stop]
            kept = stop
        if kept < len(text):
            yield False, text[kept:]
    if not held_out:
        raise UserError(
            f"{count} blocks of text are too few to hold out {fraction:g} of them; "
            "give more text or a larger fraction"
        )


def _block_size(texts: Iterator[str], fraction: float) -> tuple[int, Iterator[str]]:
    wanted = int(4 * BLOCK / fraction)
    first: list[str] = []
    size = 0
    for text in texts:
        first.append(text)
        size += len(text)
        if size >= wanted:
            break
    return max(1, min(BLOCK, int(size * fraction / 4))), chain(first, texts)


def _blocks(text: str, block: int) -> Iterator[tuple[int, int]]:
    """Yield [start, stop) of pieces of at least `block` characters (the last may be shorter)."""
    start = 0
    while start < len(text):
        line_end = text.find("\n", start + block - 1, start + 2 * block)
        stop = min(line_end + 1 if line_end >= 0 else start + block, len(text))
        yield start, stop
        start = stop


def _read(path: Path, field: str, progress: Callable[[int], None]) -> Iterator[str]:
    kind = Path(path.stem).suffix if path.suffix in _PACKED else path.suffix
    if kind == ".json":
        raise UserError(f"{path} is JSON; give JSONL (one object a line) or plain text")
    told, found = 0, False
    with path.open("rb") as raw, _unpacked(raw, path) as stream:
        parse = _lines(stream, path, field) if kind in _LINES else _plain(stream, path)
        try:
            for text in parse:
                found = True
                yield text
                progress(raw.tell() - told)
                told = raw.tell()
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise UserError(f"{path} is damaged ({error}); fetch it again") from error
        progress(path.stat().st_size - told)
    if not found:
        raise UserError(f"{path} is empty; remove it or name other files")


def _unpacked(raw: BinaryIO, path: Path) -> BinaryIO | io.BufferedIOBase:
    if path.suffix == ".gz":
        return gzip.GzipFile(fileobj=raw)
    if path.suffix == ".xz":
        return lzma.LZMAFile(raw)
    if path.suffix == ".zst":
        import zstandard

        return io.BufferedReader(_ZstdReader(raw, zstandard))
    return raw


class _ZstdReader(io.RawIOBase):
    """Zstandard frames as a raw stream; unlike the library's reader it notices a cut-off file."""

    def __init__(self, raw: BinaryIO, zstandard: ModuleType):
        self._raw, self._library = raw, zstandard
        self._frame: Any = None
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            packed = (self._frame and self._frame.unused_data) or self._raw.read(1 << 20)
            if not packed:
                if self._frame and not self._frame.eof:
                    raise EOFError("the file ends inside a Zstandard frame")
                return 0
            if self._frame is None or self._frame.eof:
                self._frame = self._library.ZstdDecompressor().decompressobj()
            try:
                self._ready = self._frame.decompress(packed)
            except self._library.ZstdError as error:
                raise OSError(str(error)) from error
        view = memoryview(buffer)
        count = min(len(view), len(self._ready))
        view[:count], self._ready = self._ready[:count], self._ready[count:]
        return count


def _plain(stream: BinaryIO | io.BufferedIOBase, path: Path) -> Iterator[str]:
    data = stream.read()
    text = _decode(data, 0, str(path)).removeprefix("\ufeff")
    yield from (part for part in text.split("\f") if part.strip())


def _lines(stream: BinaryIO | io.BufferedIOBase, path: Path, field: str) -> Iterator[str]:
    offset = 0
    for number, line in enumerate(stream, 1):
        where = f"{path} line {number}"
        text = _decode(line, offset, where)
        offset += len(line)
        if not text.strip():
            continue
        try:
            row = json.loads(text.removeprefix("\ufeff"))
        except ValueError as error:
            raise UserError(f"{where} is not JSON ({error})") from error
        value = row.get(field) if isinstance(row, dict) else None
        if isinstance(value, str) and not value.strip():
            continue  # an empty document
        if not isinstance(value, str):
            has = sorted(row) if isinstance(row, dict) else type(row).__name__
            raise UserError(
                f"{where} has no text in field '{field}', it has {has}; name the text's field with "
                "`dsjax data --field` and train on the shards it makes"
            )
        if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
            raise UserError(f"{where} holds half of a surrogate pair, which is no character")
        yield value


def _decode(data: bytes, offset: int, where: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where} is not UTF-8 at byte {offset + error.start} ({error.reason}); convert it"
        ) from error


def _is_embedded(source: str | Path) -> bool:
    return str(source) == EMBEDDED and not Path(source).exists()


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
