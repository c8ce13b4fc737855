"""`dsjax convert`: released checkpoints into run folders, and run folders into checkpoints."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from dsjax.config.flags.flag_tree import Word
from dsjax.errors import UserError, printable, say

if TYPE_CHECKING:  # jax costs a second to import
    from dsjax.released.write import Template

EVERY = 10.0  # seconds between plain lines where there is no terminal


@dataclass(frozen=True)
class HfToDsjax:
    """Make a run folder, which `dsjax generate` reads, of a released checkpoint (safetensors)."""

    source: Annotated[Path, Word("SRC")]
    """Folder with config.json and *.safetensors. Tokenizer and settings are copied; links that lead
    out of the checkpoint, or out of its repository in a cache, are followed for weights only."""
    target: Annotated[Path, Word("DST")]
    """Run folder to make, or an empty one that is there. Interrupted, the same command goes on."""
    dtype: Literal["stored", "float32", "bfloat16", "fp8"] = "stored"
    """`stored` keeps every number as it is, FP8 with its scales too; others change the dtype."""
    mtp: Literal["auto", "yes", "no"] = "auto"
    """MTP modules: auto (load if present), yes (fail if absent), no (skip)."""


@dataclass(frozen=True)
class DsjaxToHf:
    """Make a released checkpoint, which transformers, vLLM and SGLang load, of a run folder."""

    source: Annotated[Path, Word("SRC")]
    """Run folder."""
    target: Annotated[Path, Word("DST")]
    """Folder to make, or an empty one that is there. Interrupted, the same command goes on."""
    fp8: bool = False
    """Matrices in FP8 with one scale a 128x128 block, as released; what is FP8 stays as it is."""
    ue8m0: bool = False
    """Scales that are powers of two (UE8M0), as DeepSeek-V3.1."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Dtype of the rest; by default that of the run, bfloat16 beside FP8."""
    which: Literal["params", "ema"] = "params"
    """The parameters, or their average where the run kept one."""
    like: Path | None = None
    """Released checkpoint whose token ids, context length, tokenizer and chat template are taken
    over; by default the one that the run, or the run it started from, was converted from."""


Convert = HfToDsjax | DsjaxToHf


def main(args: Convert) -> int:
    """Convert; returns the exit status. Interrupted, the same command goes on where it stopped."""
    from dsjax import weights
    from dsjax.released import convert
    from dsjax.released.write import Form

    with progress_bar(args.target.name) as progress:
        if isinstance(args, HfToDsjax):
            mtp = {"auto": None, "yes": True, "no": False}[args.mtp]
            convert.to_run(args.source, args.target, args.dtype, mtp, say=say, progress=progress,
                           tokenizer=_fingerprint(args.source))
        else:
            with tempfile.TemporaryDirectory() as made:
                wanted = convert.Wanted(Form(args.fp8, args.ue8m0, args.dtype), args.which,
                                        args.like, _tokenizer(args.source, Path(made)))
                use = functools.partial(weights.use_run, is_wide=args.dtype == "float32")
                convert.to_released(args.source, args.target, wanted, say=say, progress=progress,
                                    use=use)
    print(printable(args.target))
    return 0


def _fingerprint(source: Path) -> str | None:
    """That of a released checkpoint's tokenizer; None, and a sentence, where it cannot be used."""
    from dsjax.data.tokenizers import tokenizer
    from dsjax.released import config as hf_config
    from dsjax.released import files

    config = source / files.CONFIG
    hf_config.read(files.read_json(config), str(config))  # a wrong one is no tokenizer's fault
    path = source / "tokenizer.json"
    if not path.is_file():
        return None
    try:
        return tokenizer.load(path).fingerprint
    except UserError as error:
        say("dsjax cannot use the checkpoint's tokenizer, which is copied as it is; `dsjax "
            "generate` and `dsjax train` will refuse the run until one that they can use stands in "
            f"its place: {error}")
        return None


def _tokenizer(run: Path, made: Path) -> Template | None:
    """The run's tokenizer as transformers wants it, and the ids a config names."""
    from dsjax.checkpoint import store
    from dsjax.data.tokenizers import tokenizer
    from dsjax.released import side
    from dsjax.released.write import Template

    path = run / "tokenizer.json"
    kept = store.tokenizer_of(run) if (run / "checkpoints").is_dir() else None
    if not os.path.lexists(path):
        if kept is not None:
            say(f"{run} has no tokenizer.json: none is written")
        return None
    side.checked(path, run)
    try:
        words = tokenizer.load(path)
    except UserError:
        if kept is not None:
            raise
        return Template({}, (path,))  # a released run's own tokenizer of another kind, as it is
    if kept is not None and not words.has_fingerprint(kept):
        raise UserError(
            f"{path} is not the tokenizer that the weights of {run} belong to (fingerprint "
            f"{words.fingerprint}, not {kept}), so its ids mean other words; put that one back, "
            "or move the file away to write weights alone")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **words.settings.tokens,
                "eos_token": words.core.id_to_token(words.end_id)}
    ids: dict[str, Any] = {
        "eos_token_id": words.end_id if len(words.end_ids) == 1 else list(words.end_ids)
    }
    if words.begin_id is not None:
        settings["bos_token"] = words.core.id_to_token(words.begin_id)
        ids["bos_token_id"] = words.begin_id
    beside = made / "tokenizer_config.json"
    beside.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    return Template(ids, (path, beside))


@contextlib.contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar with bytes and time left on a terminal; a plain line every ten seconds elsewhere."""
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    from dsjax.terminal import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines(title)
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(),
               TransferSpeedColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _lines(title: str) -> Callable[[int, int], None]:
    """Progress in plain lines."""
    began = time.monotonic()
    last = began

    def show(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < EVERY or not done:
            return
        last = now
        left = (now - began) / done * (total - done)
        say(f"{title}: {done / 1e9:.2f} of {total / 1e9:.2f} GB, {left:.0f} s left")

    return show
