"""Released checkpoints and run folders into one another, disk to disk, whatever the model's size.

A run folder made from a released checkpoint is one that `dsjax generate` reads: config.json,
tokenizer.json and checkpoints/step-00000000, with the source's other files in `released/`. orbax
writes the checkpoint's frame, a tree of one-number arrays; tensorstore, which orbax is built on,
then makes each array anew at its size and writes it a piece at a time, one file a piece. A journal
of the tensors that are done lets an interrupted conversion go on.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dsjax.checkpoint import files, multihost, store
from dsjax.checkpoint.arrays import Arrays, Chunked, create, state
from dsjax.checkpoint.manifest import MANIFEST, Manifest, hash_of
from dsjax.checkpoint.orbax_quiet import orbax
from dsjax.checkpoint.plain import plain
from dsjax.checkpoint.store import ARRAYS
from dsjax.config.model import ModelConfig, dropless
from dsjax.config.run import DataConfig, RunConfig, TrainConfig
from dsjax.config.stored import run_from_json, run_to_json
from dsjax.errors import UserError
from dsjax.model import transformer
from dsjax.numerics import scaled
from dsjax.params import paths
from dsjax.released import files as hf_files
from dsjax.released import hf, pieces, side
from dsjax.released import plan as hf_plan
from dsjax.released.files import Progress
from dsjax.released.hf import Like
from dsjax.released.pieces import Source
from dsjax.released.plan import Plan
from dsjax.released.target import Target

RELEASED, WORDS = "released", "tokenizer.json"
PREFIX = "params."
JOURNAL = ".done"
LENGTH = 4096  # tokens a row when training goes on; V3 report sec. 4.2
Say = Callable[[str], None]


def to_run(source: Path, run: Path, dtype: str = "stored", mtp: bool | None = None, *,
           tokenizer: str | None = None, say: Say = print,
           progress: Progress = hf.nothing) -> None:
    """Make a run folder of a released checkpoint; see `hf.load` for `dtype` and `mtp`.

    tokenizer: fingerprint of its tokenizer, kept with the weights; None where it is not known.
    """
    plan = hf_plan.plan(source, dtype, mtp)
    for remark in plan.remarks:
        say(remark)
    if not (source / WORDS).is_file():
        say(f"{source} has no {WORDS}: copy one into {run} before generating or training from it")
    side.checked(source / hf_files.CONFIG, source)
    side.extra_files(source)  # refused before the work
    target = Target(run, _fingerprint(source, dtype, mtp))
    arrays = target.partial / "checkpoints" / f"{files.PARTIAL}{0:08d}" / ARRAYS
    finished = arrays.parent.parent / files.name(0)
    with target.written(lambda: 0 if finished.exists() else _left(plan, arrays)):
        if not finished.exists():
            _write_arrays(plan, arrays, progress)
            leaves = {PREFIX + k: (shape, str(d)) for k, (shape, d) in plan.leaves.items()}
            extra = {"source": source.absolute().name, store.TOKENIZER: tokenizer}
            files.finish(arrays.parent, 0, leaves, extra)
        _journal(arrays).unlink(missing_ok=True)
        _write_rest(source, target, plan)


def to_released(run: Path, target: Path, fp8: bool = False, dtype: str | None = None, *,
                which: str = "params", pow2: bool = False, like: Path | None = None,
                own: Like | None = None, say: Say = print,
                progress: Progress = hf.nothing) -> None:
    """Make a released checkpoint of a run folder's newest checkpoint; see `hf.save`.

    like: a released checkpoint; None is the one that the run was converted from, or the run that it
    started from. own: the run's tokenizer and the token ids that it means.
    """
    config = _config(run)

    def export(manifest: Manifest, where: Path) -> int:
        prefix = store.prefix_of(manifest, which, where)
        leaves = {
            name.removeprefix(prefix): pieces.dtype_of(text)
            for name, (_, text) in manifest.leaves.items()
            if name.startswith(prefix)
        }
        _match(config.model, leaves, manifest, prefix, where)
        stored = Arrays(where / ARRAYS)
        key = f"{hash_of(where / MANIFEST)} {fp8} {dtype} {which} {pow2}"
        hf.export(Target(target, key), dropless(config.model), leaves,
                  lambda name, index: stored.read(prefix + name, index),
                  fp8=fp8, dtype=dtype, pow2=pow2, like=kept, loss=config.loss, progress=progress)
        return manifest.step

    source = like or _released_before(run, config, say)
    kept = _joined(run, hf.read_like(source), own, say) if source else own
    if dropless(config.model) != config.model:
        say("capacity_factor is not written: it drops tokens in training only")
    step = multihost.read(run.absolute() / "checkpoints", say, export)
    say(f"{target} is checkpoint {step} of {run}")


# From a released checkpoint


def _fingerprint(source: Path, dtype: str, mtp: bool | None) -> str:
    """What a half-done conversion must have been of to be gone on with."""
    listed = [
        (p.name, p.stat().st_size, p.stat().st_mtime_ns)
        for p in sorted(source.iterdir())
        if p.suffix in (".safetensors", ".json")
    ]
    text = json.dumps([str(source.absolute()), listed, dtype, mtp])
    return hashlib.sha256(text.encode()).hexdigest()


def _left(plan: Plan, arrays: Path) -> int:
    """Bytes still to be written."""
    total = sum(math.prod(shape) * d.itemsize for shape, d in plan.leaves.values())
    there = sum(p.stat().st_size for p in arrays.rglob("*") if p.is_file())
    return max(0, total - there)


def _write_arrays(plan: Plan, arrays: Path, progress: Progress) -> None:
    """Every piece of every tensor into its array, those in the journal left out."""
    journal = _journal(arrays)
    done = _done(journal, arrays)
    if done is None:
        journal.unlink(missing_ok=True)
        shutil.rmtree(arrays, ignore_errors=True)
        _frame(plan, arrays)
    where = state(plain(arrays))
    opened = {name: Chunked(where / (PREFIX + name)) for name in plan.leaves}
    current: Source | None = None
    with journal.open("a") as written:
        for source, index, values in hf.pieces(
            plan, progress, lambda s: done is not None and s.tensor.name in done
        ):
            if current is not None and current.tensor.name != source.tensor.name:
                opened[current.place.leaf].flush()  # a journal may outlive a power cut
                print(current.tensor.name, file=written, flush=True)
            current = source
            opened[source.place.leaf].write(index, values)


def _frame(plan: Plan, arrays: Path) -> None:
    """An orbax checkpoint of the right tree, and in it every array at its full size, zeros."""
    arrays.parent.mkdir(parents=True, exist_ok=True)
    ocp = orbax()
    saving = ocp.options.ArrayOptions.Saving(use_ocdbt=False, use_zarr3=True)
    ones = {
        PREFIX + name: np.zeros((1,) * len(shape), d) for name, (shape, d) in plan.leaves.items()
    }
    with ocp.Context(array_options=ocp.options.ArrayOptions(saving=saving)):
        ocp.save(plain(arrays.parent) / arrays.name, ones)
    where = state(plain(arrays))
    chunks: dict[str, tuple[int, ...]] = {}
    for source in plan.sources:
        name = source.place.leaf
        if name not in chunks:
            span = next(pieces.spans(source.place, source.tensor.row_bytes))
            chunks[name] = tuple(s.stop - s.start for s in source.place.index(*span))
    for name, (shape, dtype) in plan.leaves.items():
        shutil.rmtree(where / (PREFIX + name))
        create(where / (PREFIX + name), shape, dtype, chunks[name])
    _journal(arrays).touch()


def _done(journal: Path, arrays: Path) -> set[str] | None:
    """Names of the tensors that are written; None where nothing can be gone on from."""
    try:
        names = journal.read_text(encoding="ascii")
        state(arrays)
    except (OSError, UnicodeError, UserError):
        return None
    return set(names.split())


def _journal(arrays: Path) -> Path:
    """Where the tensors that are done are noted; outside the checkpoint, which lists its files."""
    return arrays.parent.parent / JOURNAL


def _write_rest(source: Path, target: Target, plan: Plan) -> None:
    """The run's config, the tokenizer, and the source's own small files."""
    words = source / WORDS
    run = RunConfig(
        name="".join(c if c.isprintable() else "_" for c in target.name),
        model=plan.cfg,
        train=TrainConfig(seq_len=LENGTH),
        loss=plan.released.loss,
        data=DataConfig(),
    )
    run_to_json(run, target.partial / "config.json")
    if words.is_file():
        side.copy(words, target.partial / words.name)
    kept = target.partial / RELEASED
    kept.mkdir(exist_ok=True)
    for path in (source / hf_files.CONFIG, *side.extra_files(source)):
        side.copy(path, kept / path.name)


# From a run folder


def _config(run: Path) -> RunConfig:
    """A run's config; the other kind of folder gets a sentence of its own."""
    path = run / hf_files.CONFIG
    if path.is_file() and "model_type" in hf_files.read_json(path):
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
        if (run / RELEASED / hf_files.CONFIG).is_file():
            return run / RELEASED
        if config.init_from is None:
            return None
        run = Path(config.init_from)
        if not (run / hf_files.CONFIG).is_file():
            say(f"{run}, which {seen[-1]} started from, is not there: what its checkpoint had "
                "besides weights is not taken over; --like names a checkpoint that has it")
            return None
        config = _config(run)
    return None


def _joined(run: Path, like: Like, own: Like | None, say: Say) -> Like:
    """What a released checkpoint is besides its weights; only the rest if the tokenizer is new."""
    words = run / WORDS
    if own is None or not words.is_file():
        return like
    released = next((p for p in like.files if p.name == WORDS), None)
    if released is not None and released.read_bytes() == words.read_bytes():
        return like
    say(f"the run's {WORDS} is not that of {run if released is None else released.parent}: it is "
        "written, without the token ids, chat template and generation settings of the other")
    left = {k: v for k, v in like.attributes.items() if not k.endswith("_token_id")}
    return Like(left | own.attributes, own.files)


def _match(cfg: ModelConfig, leaves: dict[str, np.dtype], manifest: Manifest, prefix: str,
           where: Path) -> None:
    """Refuse a checkpoint that is not of the run's config."""
    for name, spec in paths(transformer.specs(cfg)):
        wanted = {name: spec.shape}
        if f"{name}.codes" in leaves:
            codes, scales, _ = scaled.resting_shapes(spec)
            wanted = {f"{name}.codes": codes, f"{name}.scales": scales}
        for part, shape in wanted.items():
            found = manifest.leaves.get(prefix + part, (None, ""))[0]
            if found != shape:
                raise UserError(
                    f"{where} has {part} as {found}, but the run's config.json means {shape}; "
                    "put back the config it was trained with"
                )
