"""Documents of one file: text or lines of JSON, packed or not, or a sentence with the place.

A `.json` file is read as lines of JSON where it is that (C4 and Dolma name theirs so); one list or
one object is refused. Extensions count in any case. A packed file is refused when it unpacks to
more than `RATIO` times its size and to more than `FREE` bytes, as bombs do; text packs into a
tenth, logs into a fiftieth. Zstandard windows of up to 2 GiB (`zstd --long=31`) are read; a reader
needs as much memory as the window.
"""

import gzip
import io
import lzma
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, NamedTuple

from dsjax import disk
from dsjax.errors import UserError

MEND = "mend the line or take it out"
NAME_FIELD = ("name the text's field by --field of `dsjax audit`, or of `dsjax data`, and "
              "train on the shards it makes")
RATIO, FREE = 200, 2**30
WINDOW = 2**31
PART = 2**20
_PACK = 2**13  # bytes of Zstandard at a time: they may stand for 30,000 times as many
_LINES = (".jsonl", ".ndjson", ".json")
_PACKED = (".gz", ".xz", ".zst")
_FOREIGN = {
    **dict.fromkeys((".tar", ".tgz", ".zip", ".7z", ".bz2", ".rar"), "unpack it"),
    **dict.fromkeys((".parquet", ".arrow", ".npy", ".npz", ".safetensors", ".pdf", ".docx"),
                    "write its text as JSONL"),
}
_Stream = BinaryIO | io.BufferedIOBase


def read(path: Path, field: str, progress: Callable[[int], None]) -> Iterator[str]:
    """Yield the documents of a file; blank ones are passed over.

    progress: is told how many more bytes on disk have been read.
    """
    suffix, kind = _kinds(path)
    told = 0
    with _opened(path) as raw, _unpacked(raw, path, suffix) as stream, _refusing(path):
        parse = _lines(stream, path, field, kind) if kind in _LINES else _plain(stream, path)
        for text in parse:
            yield text
            progress(raw.tell() - told)
            told = raw.tell()
        progress(size(path) - told)


def parts(path: Path, field: str, progress: Callable[[int], None]) -> Iterator[tuple[int, str]]:
    """Yield (number, part) of the documents of a file, in memory that its size does not change.

    number: of the line in JSONL, whose documents come whole; of the document in text, from 1, which
    comes in parts of about `PART` characters, cut anywhere.
    """
    suffix, kind = _kinds(path)
    told = 0
    with _opened(path) as raw, _unpacked(raw, path, suffix) as stream, _refusing(path):
        parse = _numbered(stream, path, field, kind) if kind in _LINES else _parts(stream, path)
        for number, text in parse:
            yield number, text
            progress(raw.tell() - told)
            told = raw.tell()
        progress(size(path) - told)


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a JSONL file that are not blank as they stand, each with its number."""
    suffix, _ = _kinds(path)
    with _opened(path) as raw, _unpacked(raw, path, suffix) as stream, _refusing(path):
        for line in _rows(stream, path):
            yield line.number, line.text


def is_lines(path: Path) -> bool:
    """Tell whether a file is of lines of JSON by its name."""
    return _kinds(path)[1] in _LINES


def _kinds(path: Path) -> tuple[str, str]:
    """The last ending of a name, and the one that says what is inside."""
    suffix = path.suffix.lower()
    kind = Path(path.stem).suffix.lower() if suffix in _PACKED else suffix
    if kind in _FOREIGN:
        raise UserError(f"{path} is a {kind} file, which is not read; {_FOREIGN[kind]}, or name "
                        "other files")
    return suffix, kind


def rows(path: Path) -> Iterator[tuple[int, str, Any]]:
    """Yield the values of a JSONL file's lines that are not blank, each with its number and place.
    """
    suffix, _ = _kinds(path)
    with _opened(path) as raw, _unpacked(raw, path, suffix) as stream, _refusing(path):
        for line in _rows(stream, path):
            yield line.number, line.where, disk.parse_json(line.text, line.where, MEND)


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Say in a sentence why a file that is open cannot be read on."""
    try:
        yield
    except MemoryError:
        raise UserError(f"{path} needs more memory than there is; cut it into smaller files, "
                        "or write it as JSONL") from None
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"{path} is damaged ({error}); fetch it again") from error


def size(path: Path) -> int:
    """Return the bytes of a regular file."""
    try:
        found = path.stat()
    except FileNotFoundError:
        raise UserError(f"{path} is not there any more; leave the sources as they are while they "
                        "are read") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({disk.cause(error)}); name other files") from None
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"{path} is no regular file, and sources are read twice; write what it "
                        "gives into a file")
    return found.st_size


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    size(path)
    try:
        raw = path.open("rb")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({disk.cause(error)}); name other files") from None
    with raw:
        yield raw


# Packed files


def _unpacked(raw: BinaryIO, path: Path, suffix: str) -> _Stream:
    if suffix not in _PACKED:
        return raw
    stream: Any
    if suffix == ".gz":
        stream = gzip.GzipFile(fileobj=raw)
    elif suffix == ".xz":
        stream = lzma.LZMAFile(raw)  # noqa: SIM115
    else:
        import zstandard

        stream = _ZstdReader(raw, path, zstandard)
    return io.BufferedReader(_Bounded(stream, raw, path), 1 << 16)


class _Bounded(io.RawIOBase):
    """A raw stream that is refused while it unpacks to absurdly much."""

    def __init__(self, stream: Any, raw: BinaryIO, path: Path):
        self._stream, self._raw, self._path, self._size = stream, raw, path, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._stream.readinto(buffer)
        self._size += count
        if self._size > FREE and self._size > RATIO * self._raw.tell():
            raise UserError(f"{self._path} unpacks to more than {RATIO} times its size, "
                            f"{self._size:,} bytes of {self._raw.tell():,} so far, as no text "
                            "does; unpack it if it is yours, and name what comes out")
        return count


class _ZstdReader(io.RawIOBase):
    """Zstandard frames as a raw stream; unlike the library's reader it notices a cut-off file."""

    def __init__(self, raw: BinaryIO, path: Path, zstandard: ModuleType):
        self._raw, self._path, self._library = raw, path, zstandard
        self._frame: Any = None
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            packed = (self._frame and self._frame.unused_data) or self._raw.read(_PACK)
            if not packed:
                if self._frame and not self._frame.eof:
                    raise EOFError("the file ends inside a Zstandard frame")
                return 0
            if self._frame is None or self._frame.eof:
                unpacker = self._library.ZstdDecompressor(max_window_size=WINDOW)
                self._frame = unpacker.decompressobj(read_across_frames=False)
            try:
                self._ready = self._frame.decompress(packed)
            except self._library.ZstdError as error:
                if "memory" in str(error):
                    raise UserError(f"{self._path} needs a window above {WINDOW:,} bytes to be "
                                    "unpacked; pack it with at most zstd --long=31") from None
                raise OSError(str(error)) from error
        view = memoryview(buffer)
        count = min(len(view), len(self._ready))
        view[:count], self._ready = self._ready[:count], self._ready[count:]
        return count


# Text and lines


def _plain(stream: _Stream, path: Path) -> Iterator[str]:
    data = stream.read()
    _refuse_ids(path)
    text = _decode(data, 0, str(path)).removeprefix("\ufeff")
    yield from (part for part in text.split("\f") if part.strip())


def _parts(stream: _Stream, path: Path) -> Iterator[tuple[int, str]]:
    """Documents of a text, in parts; blank documents are counted, too."""
    _refuse_ids(path)
    number, offset, data = 1, 0, b""
    while more := stream.read(PART):
        data += more
        whole = len(data) - _begun(data)
        text = _decode(data[:whole], offset, str(path))
        first, *others = text.removeprefix("\ufeff" if offset == 0 else "").split("\f")
        offset, data = offset + whole, data[whole:]
        yield number, first
        for text in others:
            number += 1
            yield number, text
    if data:
        _decode(data, offset, str(path))


def _begun(data: bytes) -> int:
    """Bytes at the end that begin a character of UTF-8 without ending it."""
    for back in range(1, min(4, len(data) + 1)):
        byte = data[-back]
        if byte >= 0xC0:
            return back if back < 2 + (byte >= 0xE0) + (byte >= 0xF0) else 0
        if byte < 0x80:
            return 0
    return 0


def _refuse_ids(path: Path) -> None:
    if _is_ids(path):
        raise UserError(f"{path} is of token ids that `dsjax data` wrote, no text; train on them "
                        f"with --data.train {path.parent}")


def _is_ids(path: Path) -> bool:
    is_data = path.suffix == ".bin" and path.name.startswith(("tokens-", "documents-"))
    return is_data and (path.parent / "index.json").is_file()


def _lines(stream: _Stream, path: Path, field: str, kind: str) -> Iterator[str]:
    for _, text in _numbered(stream, path, field, kind):
        yield text


def _numbered(stream: _Stream, path: Path, field: str, kind: str) -> Iterator[tuple[int, str]]:
    """Documents of lines, each with the number of its line."""
    rows = _rows(stream, path)
    remedy = NAME_FIELD
    for line in _checked(rows, path) if kind == ".json" else rows:
        row = disk.parse_json(line.text, line.where, MEND)
        value = _value(row, line.where, field, remedy)
        remedy = MEND  # the field is the right one
        if value.strip():
            yield line.number, value


class _Line(NamedTuple):
    number: int
    where: str
    text: str


def _rows(stream: _Stream, path: Path) -> Iterator[_Line]:
    """Lines that are not blank, each with its number and its place."""
    offset = 0
    for number, line in enumerate(stream, 1):
        where = f"{path} line {number}"
        text = _decode(line, offset, where).removeprefix("\ufeff" if number == 1 else "")
        offset += len(line)
        if text.strip():
            yield _Line(number, where, text)


def _checked(rows: Iterator[_Line], path: Path) -> Iterator[_Line]:
    """The lines of a .json file; one that is a list, or a single object, is refused."""
    first = list(islice(rows, 2))
    try:
        row = disk.parse_json(first[0].text, path, "") if first else {}
    except UserError:
        row = None
    if not isinstance(row, dict) or len(first) == 1:
        raise UserError(f"{path} is one value of JSON, not lines of JSON; give JSONL, one object a "
                        "line, as jq -c makes it (jq -c '.[]' of a list)")
    return chain(first, rows)


def _value(row: Any, where: str, field: str, remedy: str) -> str:
    """The document of a line; `remedy` where it lacks the field."""
    value = row.get(field) if isinstance(row, dict) else None
    if isinstance(value, str):
        if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
            raise UserError(f"{where} holds half of a surrogate pair, which is no character; mend "
                            "the line or take it out")
        return value
    if isinstance(row, dict) and field in row:
        has = "null" if value is None else type(value).__name__
        raise UserError(f"{where} has {has} in field '{field}', which is no text; fill it or take "
                        "the line out")
    found = sorted(row) if isinstance(row, dict) else type(row).__name__
    raise UserError(f"{where} has no text in field '{field}', it has {str(found)[:300]}; {remedy}")


def _decode(data: bytes, offset: int, where: str) -> str:
    try:
        if offset == 0 and data[:4096].count(0) > len(data[:4096]) / 4:
            raise UserError(f"{where} looks like UTF-16 or is no text, a quarter of its bytes are "
                            "0; convert it with iconv -f UTF-16 -t UTF-8")
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        if offset == 0 and data[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise UserError(f"{where} is UTF-16; convert it with iconv -f UTF-16 -t UTF-8"
                            ) from None
        raise UserError(
            f"{where} is not UTF-8 at byte {offset + error.start} ({error.reason}); convert it"
        ) from error
