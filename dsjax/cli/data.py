"""`dsjax data`: turn text into token shards, and train a tokenizer when none is given.

Writes two folders that training reads, OUT/train and OUT/heldout (dsjax.data.shards), each with its
tokenizer.json.
"""

import os
import shlex
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from dsjax import disk
from dsjax.config.fields import seed_in_range
from dsjax.config.flags.flag_tree import Word
from dsjax.config.flags.refusal import typed_as
from dsjax.data import pack, shards, sources
from dsjax.data.tokenizers import tokenizer
from dsjax.data.tokenizers.file import MOST_IDS
from dsjax.data.tokenizers.tokenizer import Tokenizer
from dsjax.disk import to_json
from dsjax.errors import UserError, printable, say

BATCH_CHARACTERS = 2**22
SECONDS_A_LINE = 10
Tell = Callable[[int, int], None]  # (bytes read from disk, tokens written) since the last call


@dataclass(frozen=True)
class Data:
    """Prepare token shards from text: train or load a tokenizer, hold out text, write ids."""

    sources: Annotated[tuple[str, ...], Word("[SOURCE ...]")] = (sources.EMBEDDED,)
    """Files, folders or globs of text or JSONL (.gz, .xz, .zst too), or `shakespeare`."""
    out: Path = Path("runs/data")
    """Folder to write train/ and heldout/ into."""
    tokenizer: Path | None = None
    """A byte-level tokenizer.json(.gz); by default one is trained on the training text."""
    end_token: str | None = None
    """Name of the tokenizer's token that ends documents, where no file beside it names it."""
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
    """Replace the shards that are already there, once the new ones are written."""
    json: bool = False
    """Print the summary as JSON."""


def main(args: Data) -> int:
    """Run the command; returns the exit status."""
    start = time.perf_counter()
    _check_numbers(args)
    folders = {name: args.out / name for name in shards.PARTS}
    for folder in folders.values():
        if shards.exist(folder) and not args.overwrite:
            raise UserError(f"{folder} holds shards; choose another --out, or use --overwrite")
    disk.try_folder(args.out, "name another --out")
    size = sources.size_on_disk(args.sources)
    with _own(args.out):
        words = _tokenizer(args)
        for remark in words.remarks:
            say(remark)
        left_over = None
        if args.heldout_fraction == 0:
            left_over = folders.pop("heldout")
        with _progress(size) as tell:
            _write(args, folders, words, tell)
        if left_over is not None:
            shards.remove(left_over)
    summary: dict[str, Any] = {name: _summary(folder, words) for name, folder in folders.items()}
    summary["seconds"] = round(time.perf_counter() - start, 2)
    _print({**summary, "next": _next(folders, words)}, is_json=args.json)
    return 0


def _check_numbers(args: Data) -> None:
    """Refuse numbers that no machine or no tokenizer has, before any work."""
    if not 0 <= args.fim_rate <= 1:
        raise UserError(f"--fim-rate {args.fim_rate} is a share; use 0 to 1")
    if not 0 <= args.heldout_fraction < 1:
        raise UserError(
            f"--heldout-fraction {args.heldout_fraction} is outside [0, 1); use 0.03, or 0 for none"
        )
    seed_in_range(args.seed, "--seed ")
    least = 256 + len(tokenizer.SPECIAL)
    for flag, value, low, high in (
        ("--vocab", args.vocab, least, MOST_IDS),
        ("--shard-tokens", args.shard_tokens, 1, 2**31),
        ("--tokenizer-characters", args.tokenizer_characters, 1, 2**36),
    ):
        if not low <= value <= high:
            raise UserError(f"{flag} {value} is outside of what can be made; choose at least {low} "
                            f"and at most {high}")


@contextmanager
def _own(out: Path) -> Iterator[None]:
    """Hold --out, made if need be; a folder that was made is taken away again by a failure."""
    made = [p for p in (out, *out.parents) if not os.path.lexists(p)]
    disk.make_folder(out, "name another --out")
    try:
        with disk.held(out, "wait for it, or choose another --out"):
            yield
    except BaseException:
        if made:
            (out / disk.LOCK).unlink(missing_ok=True)
        for folder in made:
            with suppress(OSError):
                folder.rmdir()
        raise


def _tokenizer(args: Data) -> Tokenizer:
    if args.tokenizer is not None:
        return tokenizer.load(args.tokenizer, end=args.end_token)
    if args.end_token is not None:
        raise UserError(f"--end-token {args.end_token} is of a tokenizer that is given; give "
                        "--tokenizer, or leave it out")
    train = (text for is_held, text in _pieces(args) if not is_held)
    with _ticker(f"training a byte-level BPE of {args.vocab:,} ids"), typed_as("vocab"):
        return tokenizer.train_bpe(_first(train, args.tokenizer_characters), args.vocab)


def _first(texts: Iterable[str], characters: int) -> Iterator[str]:
    for text in texts:
        yield text[:characters]
        characters -= len(text)
        if characters <= 0:
            return


def _pieces(args: Data, tell: Tell = lambda read, tokens: None,
            say: Callable[[str], None] = lambda sentence: None) -> Iterator[tuple[bool, str]]:
    """Yield (is held out, text) of everything the sources hold."""
    texts = sources.documents(args.sources, field=args.field, progress=lambda n: tell(n, 0),
                              say=say)
    return sources.split_stream(texts, args.heldout_fraction)


def _write(args: Data, folders: dict[str, Path], words: Tokenizer, tell: Tell) -> None:
    with shards.writing(folders, words, shard_tokens=args.shard_tokens,
                              is_overwriting=args.overwrite) as writers:
        documents = 0
        for batch in _batches(_pieces(args, tell, say)):
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


def _next(folders: dict[str, Path], words: Tokenizer) -> str | None:
    """The command that trains on what was made; None where that alone cannot be trained on."""
    if "heldout" not in folders:
        return None
    command = ["dsjax", "train", "tiny", "--model.vocab", str(words.vocab)]
    for name, folder in folders.items():
        command += [f"--data.{name}", str(folder)]
    return shlex.join(command)


def _print(summary: dict, *, is_json: bool) -> None:
    if is_json:
        print(to_json(summary))
        return
    for part in (part for part in summary.values() if isinstance(part, dict)):
        print(
            f"{printable(part['folder'])}: {part['tokens']:,} tokens in "
            f"{part['documents']:,} documents, "
            f"{part['text_bytes']:,} bytes, {part['bytes_per_token']:.2f} bytes a token"
        )
    print(f"{summary['seconds']:.1f} s")
    if summary["next"] is None:
        words = Path(summary["train"]["folder"]) / "tokenizer.json"
        print("to train on it, held-out text is missing, since --heldout-fraction is 0: prepare "
              f"some into another --out with --tokenizer {printable(shlex.quote(str(words)))}, and "
              "name that folder as --data.heldout")
        return
    print(f"train on it: {printable(summary['next'])}")


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


@contextmanager
def _ticker(what: str) -> Iterator[None]:
    """Say what is being done, and every ten seconds that it still is."""
    say(what)
    is_over, began = threading.Event(), time.monotonic()

    def tick() -> None:
        while not is_over.wait(SECONDS_A_LINE):
            say(f"{what}: {time.monotonic() - began:,.0f} s")

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


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
