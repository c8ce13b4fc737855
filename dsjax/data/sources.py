"""Documents from files, the corpus that ships with dsjax, and the held-out split.

A document is a str. Plain text is one document a file, or several separated by form feeds; JSONL
is one document a line, in a field. Either may be packed as .gz, .xz or .zst (`readers`). Whatever
cannot be read (broken links, pipes, damaged files) is refused with its place. Passed over are blank
lines and pages, files and folders whose names begin with a dot, and, said by name, files without
text among others. Links are followed, to folders once each.
"""

import glob
import lzma
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import resources
from itertools import chain
from pathlib import Path

from dsjax import disk
from dsjax.data import readers
from dsjax.errors import UserError

EMBEDDED = "shakespeare"
BLOCK = 8192
FLAG = "--heldout-fraction"


def shakespeare() -> list[str]:
    """Return the embedded corpus: 42 works, 5.06 MB of ASCII (corpus/ATTRIBUTION.md)."""
    packed = resources.files("dsjax.data").joinpath("corpus/shakespeare.txt.xz").read_bytes()
    return lzma.decompress(packed).decode("ascii").split("\f")


def documents(
    sources: Sequence[str | Path],
    *,
    field: str = "text",
    progress: Callable[[int], None] = lambda size: None,
    say: Callable[[str], None] = lambda sentence: None,
) -> Iterator[str]:
    """Yield the documents of files, folders, globs, or `shakespeare`, sorted within each source.

    `progress` is told how many more bytes on disk have been read (see `size_on_disk`), `say` which
    files among others held no text.
    """
    for source in sources:
        if _is_embedded(source):
            for work in shakespeare():
                yield work
                progress(len(work))
        else:
            yield from _documents_of(source, field, progress, say)


def _documents_of(source: str | Path, field: str, progress: Callable[[int], None],
                  say: Callable[[str], None]) -> Iterator[str]:
    paths, empty = find(source), []
    for path in paths:
        is_empty = True
        for text in readers.read(path, field, progress):
            is_empty = False
            yield text
        if is_empty:
            empty.append(path)
    if len(empty) == len(paths):
        what = f"{source} is empty" if len(paths) == 1 else f"all {len(paths)} files of {source} " \
            "are empty"
        raise UserError(f"{what}; name other files")
    if empty:
        say(f"{len(empty)} of {len(paths)} files of {source} hold no text, as {empty[0]}")


def size_on_disk(sources: Sequence[str | Path]) -> int:
    """Return the total that `documents` will report to `progress`."""
    return sum(
        sum(map(len, shakespeare()))
        if _is_embedded(source)
        else sum(readers.size(path) for path in find(source))
        for source in sources
    )


def find(source: str | Path) -> list[Path]:
    """Return the files that a path, a folder (searched through) or a glob names, sorted."""
    path = Path(source)
    if os.path.lexists(path):
        files = _inside(path)
    elif any(c in str(source) for c in "*?["):
        matches = glob.glob(str(source), recursive=True)
        files = [file for match in matches for file in _inside(Path(match))]
    else:
        raise UserError(f"{source} does not exist; give a file, a folder, a glob or '{EMBEDDED}'")
    if not files:
        raise UserError(f"{source} holds no files; give a file, a folder, a glob or '{EMBEDDED}'")
    return sorted(set(files))


def _inside(path: Path) -> list[Path]:
    """A file, or the files of a folder and of those in it, each folder once whatever links say."""
    files, waiting, seen = [], [path], set()
    while waiting:
        here = waiting.pop()
        try:
            found = here.stat()
            if not stat.S_ISDIR(found.st_mode):
                readers.size(here)
                files.append(here)
            elif (found.st_dev, found.st_ino) not in seen:
                seen.add((found.st_dev, found.st_ino))
                names = sorted(name for name in os.listdir(here) if not name.startswith("."))
                waiting += [here / name for name in reversed(names)]
        except FileNotFoundError:
            what = f" is a link to {os.readlink(here)}, which" if here.is_symlink() else ""
            raise UserError(f"{here}{what} is not there; remove it or name other files") from None
        except OSError as error:
            raise UserError(f"{here} cannot be read ({disk.cause(error)}); name other files"
                            ) from None
    return files


def split(
    texts: Iterable[str], fraction: float, *, block: int | None = None, flag: str = FLAG
) -> tuple[list[str], list[str]]:
    """Return (training documents, held-out documents); no character is in both, none is lost."""
    pieces = list(split_stream(texts, fraction, block=block, flag=flag))
    return [t for held, t in pieces if not held], [t for held, t in pieces if held]


def split_stream(
    texts: Iterable[str], fraction: float, *, block: int | None = None, flag: str = FLAG
) -> Iterator[tuple[bool, str]]:
    """Yield (is held out, piece): every n-th block of all documents is held out, 1/n = `fraction`.

    Both sides thus have the same distribution. A block is about `block` characters, cut after a
    line end; a document keeps what lies between its held-out blocks as pieces. By default 8 KiB,
    or less where the whole text would make fewer than four held-out blocks. flag: how the fraction
    is typed.
    """
    if not 0 <= fraction < 1:
        raise UserError(f"{flag} {fraction} is outside [0, 1); use 0.03, or 0 for none")
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
            f"the text is too short to hold out a share of {fraction:g} (it makes {count} "
            f"block{'s' * (count != 1)}, of which whole ones are held out); give more text, or a "
            f"larger {flag}, up to 0.5"
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


def _is_embedded(source: str | Path) -> bool:
    return str(source) == EMBEDDED and not Path(source).exists()
