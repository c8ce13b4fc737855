"""Released checkpoints and run folders into one another, disk to disk, whatever the model's size.

A run folder made from a released checkpoint is one that `dsjax generate` reads: config.json,
tokenizer.json and checkpoints/step-00000000, with the source's other files in `released/`. Arrays
are written a chunk at a time, one file each, which appears whole or not at all: an interrupted
conversion goes on with the chunks that are not there.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dsjax.checkpoint import files, reader, run_weights, store
from dsjax.checkpoint.arrays import Chunked, Written
from dsjax.checkpoint.boxes import Index
from dsjax.checkpoint.manifest import MANIFEST, hash_of
from dsjax.checkpoint.plain import plain
from dsjax.checkpoint.reader import Weights
from dsjax.checkpoint.run_weights import RunWeights
from dsjax.checkpoint.sink import Progress
from dsjax.checkpoint.store import ARRAYS, CHECKPOINTS
from dsjax.config.model import dropless
from dsjax.config.run import DataConfig, RunConfig, TrainConfig
from dsjax.config.stored import run_from_json, run_to_json
from dsjax.errors import UserError
from dsjax.released import files as released_files
from dsjax.released import read, side
from dsjax.released.read import Opened
from dsjax.released.target import Target
from dsjax.released.write import Export, Form, Template, read_template

RELEASED, TOKENIZER = "released", "tokenizer.json"
PREFIX = "params."
LENGTH = 4096  # tokens a row when training goes on; V3 report sec. 4.2
WRITING = 4  # chunks on their way to the disk, which takes a while to say that it has one
Say = Callable[[str], None]


def nothing(done: int, total: int) -> None:
    """Show no progress."""


def to_run(source: Path, run: Path, dtype: str = "stored", mtp: bool | None = None, *,
           tokenizer: str | None = None, say: Say = print, progress: Progress = nothing) -> None:
    """Make a run folder of a released checkpoint; see `hf.load` for `dtype` and `mtp`.

    tokenizer: fingerprint of its tokenizer, kept with the weights; None where it is not known.
    """
    opened = read.open_folder(source, dtype, mtp)
    weights = opened.weights
    for remark in opened.remarks:
        say(remark)
    if not (source / TOKENIZER).is_file():
        say(f"{source} has no {TOKENIZER}: copy one into {run} before generating or training from "
            "it")
    side.checked(source / released_files.CONFIG, source)
    side.extra_files(source)  # refused before the work
    target = Target(run, _fingerprint(source, dtype, mtp))
    partial = target.partial / CHECKPOINTS / f"{files.PARTIAL}{0:08d}"
    finished = partial.parent / files.name(0)
    with target.written(lambda: 0 if finished.exists() else _left(weights, partial)):
        if not finished.exists():
            opened.check()
            write_arrays(weights, partial / ARRAYS, progress)
            leaves = {PREFIX + n: (leaf.shape, str(leaf.dtype)) for n, leaf in
                      weights.leaves.items()}
            extra = {"source": source.absolute().name, store.TOKENIZER: tokenizer}
            files.finish(partial, 0, leaves, extra)
        _write_rest(source, target, opened)


@dataclass(frozen=True)
class Wanted:
    """The released checkpoint that is made of a run folder."""

    form: Form = field(default_factory=Form)
    which: str = "params"
    template: Path | None = None
    """A released checkpoint; None is the one that the run was converted from, or the run that it
    started from."""
    own: Template | None = None
    """The run's tokenizer and the token ids that it means."""


def to_released(run: Path, target: Path, wanted: Wanted = Wanted(), *, say: Say = print,
                progress: Progress = nothing, use: Callable[..., int] = run_weights.read) -> None:
    """Make a released checkpoint of a run folder's newest checkpoint; see `hf.save`.

    use: as `run_weights.read`; the command gives the one that merges what a part has learnt.
    """
    config = _config(run)
    source = wanted.template or _released_before(run, config, say)
    kept = wanted.own
    if source:
        kept = _joined(run, read_template(source), wanted.own, say)
    cfg = dropless(config.model)
    if cfg != config.model:
        say("capacity_factor is not written: it drops tokens in training only")

    def export(weights: RunWeights) -> int:
        key = f"{hash_of(weights.where / MANIFEST)} {wanted.form} {wanted.which}"
        whole = reader.of_model(weights, cfg, f"{weights.where}")
        Export(whole, wanted.form, kept, config.loss).write(Target(target, key), progress)
        return weights.manifest.step

    step = use(run, cfg, export, say=say, which=wanted.which)
    say(f"{target} is checkpoint {step} of {run}")


# From a released checkpoint


def _fingerprint(source: Path, dtype: str, mtp: bool | None) -> str:
    """Hash of the source files and options; a partial conversion is gone on with if it matches."""
    listed = [
        (p.name, p.stat().st_size, p.stat().st_mtime_ns)
        for p in sorted(source.iterdir())
        if p.suffix in (".safetensors", ".json")
    ]
    text = json.dumps([str(source.absolute()), listed, dtype, mtp])
    return hashlib.sha256(text.encode()).hexdigest()


def _left(weights: Weights, partial: Path) -> int:
    """Bytes still to be written."""
    total = sum(leaf.nbytes for leaf in weights.leaves.values())
    there = sum(p.stat().st_size for p in partial.rglob("*") if p.is_file())
    return max(0, total - there)


def write_arrays(weights: Weights, folder: Path, progress: Progress) -> None:
    """Write every chunk of every array that is not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    at = plain(folder)
    total = sum(leaf.nbytes for leaf in weights.leaves.values())
    opened = {name: Chunked(at / (PREFIX + name), leaf) for name, leaf in weights.leaves.items()}
    done = 0

    def missing() -> Iterator[tuple[str, Index]]:
        for name, leaf in weights.leaves.items():
            for index in leaf.chunks():
                if not opened[name].has(index):
                    yield name, index

    writing: collections.deque[Written] = collections.deque()
    try:
        for name, index, values in reader.read_ahead(weights, missing()):
            writing.append(opened[name].write(index, values))
            done += values.nbytes
            if len(writing) > WRITING:
                writing.popleft().result()
            progress(done, total)
        while writing:
            writing.popleft().result()
    finally:  # nothing is written behind the back of whoever is told of a failure
        for written in writing:
            with contextlib.suppress(Exception):
                written.result()
    progress(total, total)


def _write_rest(source: Path, target: Target, opened: Opened) -> None:
    """Write the run's config, the tokenizer, and the source's own small files."""
    run = RunConfig(
        name="".join(c if c.isprintable() else "_" for c in target.name),
        model=opened.weights.cfg,
        train=TrainConfig(seq_len=LENGTH),
        loss=opened.loss,
        data=DataConfig(),
    )
    run_to_json(run, target.partial / "config.json")
    if (source / TOKENIZER).is_file():
        side.copy(source / TOKENIZER, target.partial / TOKENIZER)
    kept = target.partial / RELEASED
    kept.mkdir(exist_ok=True)
    for path in (source / released_files.CONFIG, *side.extra_files(source)):
        side.copy(path, kept / path.name)


# From a run folder


def _config(run: Path) -> RunConfig:
    """A run's config; the other kind of folder gets a sentence of its own."""
    path = run / released_files.CONFIG
    if path.is_file() and "model_type" in released_files.read_json(path):
        raise UserError(
            f"{run} is a released checkpoint; convert it with `dsjax convert hf-to-dsjax`, or give "
            "the folder of a run"
        )
    return run_from_json(path)


def _released_before(run: Path, config: RunConfig, say: Say) -> Path | None:
    """The released checkpoint that a run was converted from, or the run that it started from."""
    seen: list[Path] = []
    while run not in seen:
        seen.append(run)
        if (run / RELEASED / released_files.CONFIG).is_file():
            return run / RELEASED
        if config.init_from is None:
            return None
        run = Path(config.init_from)
        if not (run / released_files.CONFIG).is_file():
            say(f"{run}, which {seen[-1]} started from, is not there: what its checkpoint had "
                "besides weights is not taken over; --like names a checkpoint that has it")
            return None
        if "model_type" in released_files.read_json(run / released_files.CONFIG):
            return run
        config = _config(run)
    return None


def _joined(run: Path, template: Template, own: Template | None, say: Say) -> Template:
    """Everything but weights of the checkpoint to be made; with a new tokenizer, its own ids."""
    words = run / TOKENIZER
    if own is None or not words.is_file():
        return template
    released = next((p for p in template.files if p.name == TOKENIZER), None)
    if released is not None and released.read_bytes() == words.read_bytes():
        return template
    there = run if released is None else released.parent
    say(f"the run's {TOKENIZER} is not that of {there}: it is written, without the token ids, chat "
        "template and generation settings of the other")
    left = {k: v for k, v in template.attributes.items() if not k.endswith("_token_id")}
    return Template(left | own.attributes, own.files)
