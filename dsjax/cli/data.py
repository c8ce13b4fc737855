"""`dsjax data`: turn text into token shards, and train a tokenizer when none is given.

Writes two folders that training reads, OUT/train and OUT/heldout (dsjax.data.shards), each with its
tokenizer.json.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from dsjax.data import pack, shards, sources, tokenizer
from dsjax.data.tokenizer import Tokenizer
from dsjax.errors import UserError, printable, say

BATCH_CHARACTERS = 2**22
SECONDS_A_LINE = 10
Tell = Callable[[int, int], None]  # (bytes read from disk, tokens written) since the last call


@dataclass(frozen=True)
class Data:
    """Prepare token shards from text: train or load a tokenizer, hold out text, write ids."""

    sources: Annotated[tuple[str, ...], tyro.conf.Positional] = (sources.EMBEDDED,)
    """Files, folders or globs of text or JSONL (.gz, .xz, .zst too), or `shakespeare`."""
    out: Path = Path("runs/data")
    """Folder to write train/ and heldout/ into."""
    tokenizer: Path | None = None
    """A byte-level tokenizer.json(.gz); by default one is trained on the training text."""
    vocab: int = 4096
    """Ids of the tokenizer to train."""
    tokenizer_characters: int = 2**28
    """Train the tokenizer on the first so many characters."""
    field: str = "text"
    """Field of a JSONL line that holds the document."""
    heldout_fraction: float = 0.03
    """Share of the text held out, in blocks spread over all documents; 0 holds out nothing."""
    fim_rate: float = 0.0
    """Share of training documents rearranged for fill-in-the-middle (V3 0.1)."""
    seed: int = 0
    """Seed of the fill-in-the-middle cuts."""
    shard_tokens: int = 2**28
    """Tokens a file, about."""
    overwrite: bool = False
    """Replace the shards that are already there."""
    json: bool = False
    """Print the summary as JSON."""


def main(args: Data) -> int:
    """Run the command; returns the exit status."""
    start = time.perf_counter()
    if not 0 <= args.fim_rate <= 1:
        raise UserError(f"--fim-rate {args.fim_rate} is a share; use 0 to 1")
    folders = {"train": args.out / "train", "heldout": args.out / "heldout"}
    for folder in folders.values():
        if shards.exist(folder) and not args.overwrite:
            raise UserError(f"{folder} holds shards; choose another --out, or use --overwrite")
    size = sources.size_on_disk(args.sources)
    words = _tokenizer(args)
    for folder in folders.values():
        shards.remove(folder)
    if args.heldout_fraction == 0:
        del folders["heldout"]
    with _progress(size) as tell:
        _write(args, folders, words, tell)
    summary = {name: _summary(folder, words) for name, folder in folders.items()}
    _print({**summary, "seconds": round(time.perf_counter() - start, 2)}, is_json=args.json)
    return 0


def _tokenizer(args: Data) -> Tokenizer:
    if args.tokenizer is not None:
        return tokenizer.load(args.tokenizer)
    say(f"training a byte-level BPE of {args.vocab:,} ids")
    train = (text for is_held, text in _pieces(args) if not is_held)
    return tokenizer.train_bpe(_first(train, args.tokenizer_characters), args.vocab)


def _first(texts: Iterable[str], characters: int) -> Iterator[str]:
    for text in texts:
        yield text[:characters]
        characters -= len(text)
        if characters <= 0:
            return


def _pieces(args: Data, tell: Tell = lambda read, tokens: None) -> Iterator[tuple[bool, str]]:
    """Yield (is held out, text) of everything the sources hold."""
    texts = sources.documents(args.sources, field=args.field, progress=lambda n: tell(n, 0))
    return sources.split_stream(texts, args.heldout_fraction)


def _write(args: Data, folders: dict[str, Path], words: Tokenizer, tell: Tell) -> None:
    with ExitStack() as stack:
        writers = {
            name: stack.enter_context(shards.Writer(folder, words, shard_tokens=args.shard_tokens))
            for name, folder in folders.items()
        }
        documents = 0
        for batch in _batches(_pieces(args, tell)):
            ids = words.encode_batch([text for _, text in batch])
            train = [d for (is_held, _), d in zip(batch, ids, strict=True) if not is_held]
            rearranged = pack.fim(train, words, rate=args.fim_rate, seed=args.seed, first=documents)
            documents += len(train)
            for (is_held, text), document in zip(batch, ids, strict=True):
                size = len(text.encode())
                if is_held:
                    writers["heldout"].add(document, size)
                else:
                    writers["train"].add(next(rearranged), size)
            tell(0, sum(map(len, ids)) + len(ids))


def _batches(pieces: Iterable[tuple[bool, str]]) -> Iterator[list[tuple[bool, str]]]:
    """Group pieces for the tokenizer's threads."""
    batch, size = [], 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece[1])
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _summary(folder: Path, words: Tokenizer) -> dict:
    written = shards.read(folder, words)
    return {
        "folder": str(folder),
        "documents": written.documents,
        "tokens": len(written),
        "text_bytes": written.text_bytes,
        "bytes_per_token": round(written.text_bytes / len(written), 4),
        "files": len(written.files),
        "vocab": written.vocab,
        "tokenizer": written.fingerprint,
    }


def _print(summary: dict, *, is_json: bool) -> None:
    if is_json:
        print(json.dumps(summary))
        return
    for part in (part for part in summary.values() if isinstance(part, dict)):
        print(
            f"{printable(part['folder'])}: {part['tokens']:,} tokens in "
            f"{part['documents']:,} documents, "
            f"{part['text_bytes']:,} bytes, {part['bytes_per_token']:.2f} bytes a token"
        )
    print(f"{summary['seconds']:.1f} s")


@contextmanager
def _progress(size: int) -> Iterator[Tell]:
    """Show bytes read and tokens written on standard error: a bar, or lines off a terminal."""
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    from dsjax.terminal import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _line_teller(size)
        return
    columns = (
        TextColumn("tokenizing"),
        BarColumn(),
        DownloadColumn(),
        TextColumn("{task.fields[tokens]:,} tokens"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=size, tokens=0)
        total = 0

        def tell(read: int, tokens: int) -> None:
            nonlocal total
            total += tokens
            bar.update(task, advance=read, tokens=total)

        yield tell


def _line_teller(size: int) -> Tell:
    done, last = [0, 0], time.monotonic()

    def tell(read: int, tokens: int) -> None:
        nonlocal last
        done[0] += read
        done[1] += tokens
        if time.monotonic() - last > SECONDS_A_LINE:
            last = time.monotonic()
            share = f"{done[0] / 1e6:,.1f} of {size / 1e6:,.1f} MB"
            say(f"tokenizing: {share} read, {done[1]:,} tokens")

    return tell
