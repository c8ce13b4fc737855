"""Released checkpoints (Hugging Face safetensors) as dsjax parameters, and back.

    cfg, params = hf.load("DeepSeek-V2-Lite", dtype="bfloat16")
    hf.save("mine", cfg, params)

DeepSeek-V2, V2-Lite, V3, V3.1, R1, Moonlight and Kimi-K2, in float32, bfloat16 or FP8 with its
scales, MTP modules included.

A checkpoint that is loaded as `stored` (or `fp8`) and saved is equal tensor for tensor, bit for
bit. For FP8 codes and scales this wants fp8=True and every matrix of a linear layer in FP8, as
released. Files and the order in them are dsjax's: they too are equal where dsjax wrote the first.
Once FP8 is dequantized nothing is promised: quantizing again takes the scale from the largest
number of a block, which need not give the scale that it came from.

Peak host memory beyond the parameters themselves is a few pieces of 16 MB when loading and twice a
file of the largest tensor's size when saving, whatever the model's size (experiments/weights_io).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding

from dsjax import params as trees
from dsjax.checkpoint.sink import Buffers, Index, region
from dsjax.config.loss import LossConfig
from dsjax.config.model import ModelConfig
from dsjax.errors import UserError
from dsjax.errors import say as to_stderr
from dsjax.model import transformer
from dsjax.model.transformer import TransformerParams
from dsjax.numerics import scaled
from dsjax.numerics.scaled import Scaled
from dsjax.released import config_out, names, side, write
from dsjax.released import files as hf_files
from dsjax.released import pieces as hf_pieces
from dsjax.released import plan as hf_plan
from dsjax.released.files import Progress
from dsjax.released.pieces import Source
from dsjax.released.plan import Plan
from dsjax.released.target import Target

Shardings = Any
"""None, a tree of shardings like the parameters, or a function of a leaf's name and shape."""

Piece = tuple[Source, Index, np.ndarray]
WORKERS = 2  # pieces made at once; reading, turning and widening release the interpreter


def load(path: Path | str, dtype: str = "float32", *, shardings: Shardings = None,
         mtp: bool | None = None, say: Callable[[str], None] | None = None,
         progress: Progress | None = None) -> tuple[ModelConfig, TransformerParams]:
    """Read a released checkpoint onto devices: its config, and parameters with those shardings.

    dtype: `float32` or `bfloat16` for all (FP8 dequantized), `stored` for each array as it is, with
    FP8 matrices as `Scaled`, `fp8` the same and an error where there are none. The router's bias is
    float32 in the first two. mtp: False leaves the MTP modules, True wants them, None takes them
    where they are. `say` gets sentences about what was assumed (None: standard error).
    """
    folder = Path(path)
    plan = hf_plan.plan(folder, dtype, mtp)
    for remark in plan.remarks:
        (say or to_stderr)(f"{folder}: {remark}")
    buffers = Buffers(plan.leaves, _sharding_of(plan, shardings))
    for source, index, values in pieces(plan, progress or nothing):
        buffers.put(source.place.leaf, index, values)
    return plan.cfg, hf_plan.tree(plan.cfg, buffers.arrays())


def save(path: Path | str, cfg: ModelConfig, params: TransformerParams, fp8: bool = False, *,
         dtype: str | None = None, pow2: bool = False, like: Path | str | None = None,
         loss: LossConfig | None = None, progress: Progress | None = None) -> None:
    """Write parameters as a released checkpoint that transformers, vLLM and SGLang load.

    fp8: matrices become E4M3 with one scale a 128x128 block (powers of two with `pow2`, as V3.1),
    `Scaled` leaves are written as they are, and the rest is bfloat16. Otherwise arrays keep their
    dtype, or get `dtype`, and `Scaled` leaves are dequantized to bfloat16. `like` is a released
    checkpoint whose token ids, context length and tokenizer files are taken over. `loss` gives
    aux_loss_alpha, with which others train on; without it, that of `like`.
    """
    if dtype is not None and dtype not in hf_plan.WIDTHS:
        raise UserError(f"the dtype {dtype!r} is not a choice; use {' or '.join(hf_plan.WIDTHS)}")
    arrays = named(cfg, params)
    leaves = {name: np.dtype(a.dtype) for name, a in arrays.items()}
    folder = Target(Path(path), None)

    def read(name: str, index: Index) -> np.ndarray:
        return region(arrays[name], index)

    export(folder, cfg, leaves, read, fp8=fp8, dtype=dtype, pow2=pow2, loss=loss,
           like=read_like(Path(like)) if like is not None else None,
           progress=progress or nothing)


def export(folder: Target, cfg: ModelConfig, leaves: dict[str, np.dtype], read: write.Region, *,
           fp8: bool, dtype: str | None, pow2: bool, like: Like | None,
           loss: LossConfig | None, progress: Progress) -> None:
    """Write a released checkpoint from leaves that are read a part at a time, see `save`."""
    if pow2 and not fp8:
        raise UserError("power-of-two scales (--pow2) are of FP8 matrices; ask for fp8 too (--fp8)")
    wanted = None if dtype is None else hf_plan.WIDTHS[dtype]
    tensors = list(write.outputs(cfg, leaves, wanted, fp8))
    plain = next(t.dtype for t in tensors)
    form = _scale_form(tensors, leaves, read, pow2) if fp8 else None
    config = config_out.write(cfg, str(plain), form, like.attributes if like else None,
                                  loss)
    files = list(like.files) if like else []
    write.write(folder, tensors, leaves, read, config, files, pow2, progress)


@dataclass(frozen=True)
class Like:
    """What a released checkpoint is besides its weights."""

    attributes: dict[str, Any]
    """A config, or the part of one that a ModelConfig has no place for."""
    files: tuple[Path, ...] = ()
    """Tokenizer, generation settings, code."""


def read_like(folder: Path) -> Like:
    """All that a released checkpoint is besides its weights."""
    config = hf_files.read_json(folder / hf_files.CONFIG)
    if "model_type" not in config:
        raise UserError(
            f"{folder / hf_files.CONFIG} names no model_type; give the folder of a released "
            "checkpoint"
        )
    return Like(config, tuple(side.extra_files(folder)))


def _scale_form(tensors: list[write.Output], leaves: dict[str, np.dtype],
                read: write.Region, pow2: bool) -> str:
    """How a config calls the FP8 scales: those that are kept as they are, and those to be made."""
    kept = [p for t in tensors if t.is_scale for p in names.held(t.place)[1:]]
    kept = [p for p in kept if p.leaf in leaves]
    is_pow2 = all(_are_powers(read(p.leaf, p.index(0, p.shape[0]))) for p in kept)
    if pow2 and not is_pow2:
        raise UserError(
            "the FP8 matrices are written as they are, and their scales are not powers of two; "
            "leave --pow2 out, or convert the checkpoint to bfloat16 first (--dtype bfloat16)"
        )
    return "ue8m0" if (is_pow2 if kept else pow2) else "float"


def _are_powers(scales: np.ndarray) -> bool:
    """Whether all scales are powers of two."""
    return bool((np.frexp(scales.astype(np.float32))[0] == 0.5).all())


def pieces(plan: Plan, progress: Progress,
           is_done: Callable[[Source], bool] | None = None) -> Iterator[Piece]:
    """Every piece of a plan with its place in its leaf; a few are made ahead by threads."""
    read, total = _compare(plan, progress), plan.nbytes
    waiting: list[tuple[Source, int, int, Future[np.ndarray]]] = []
    with ThreadPoolExecutor(WORKERS, thread_name_prefix="pieces") as pool:
        try:
            for task in _tasks(plan, is_done):
                waiting.append((*task, pool.submit(hf_pieces.read, *task)))
                if len(waiting) <= WORKERS:
                    continue
                source, start, stop, made = waiting.pop(0)
                yield source, source.place.index(start, stop), made.result()
                read += source.tensor.row_bytes * (stop - start)
                progress(read, total)
            for source, start, stop, made in waiting:
                yield source, source.place.index(start, stop), made.result()
        finally:
            for *_, made in waiting:
                made.cancel()
    progress(total, total)


def _tasks(plan: Plan,
           is_done: Callable[[Source], bool] | None) -> Iterator[tuple[Source, int, int]]:
    """Tensors and the rows of each piece, those of finished tensors left out."""
    for source in plan.sources:
        if is_done is None or not is_done(source):
            for start, stop in hf_pieces.spans(source.place, source.tensor.row_bytes):
                yield source, start, stop


def _compare(plan: Plan, progress: Progress) -> int:
    """Hold the MTP modules' embeddings and heads against the main model's; returns bytes read."""
    done = 0
    for copy, main in plan.copies:
        if copy.dtype != main.dtype:
            raise UserError(f"{copy.file}: {copy.name} is {copy.dtype}, {main.name} {main.dtype}")
        step = max(1, hf_pieces.PIECE // max(1, copy.row_bytes))
        for start in range(0, copy.shape[0], step):
            stop = min(start + step, copy.shape[0])
            if copy.rows(start, stop).tobytes() != main.rows(start, stop).tobytes():
                raise UserError(
                    f"{copy.file}: {copy.name} differs from {main.name}, but MTP modules share "
                    "the main model's; leave the modules out (--mtp no)"
                )
            done += 2 * copy.row_bytes * (stop - start)
            progress(done, plan.nbytes)
    return done


def named(cfg: ModelConfig, params: TransformerParams) -> dict[str, Any]:
    """Arrays by dotted name, `X.codes` and `X.scales` for a Scaled; shapes must be the specs'."""
    found: dict[str, Any] = {}

    def take(path: tuple, spec: trees.Spec, leaf: Any) -> None:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        wanted = {name: spec.shape}
        got = {name: leaf}
        if isinstance(leaf, Scaled):
            codes, scales, _ = scaled.resting_shapes(spec)
            wanted = {f"{name}.codes": codes, f"{name}.scales": scales}
            got = {f"{name}.codes": leaf.codes, f"{name}.scales": leaf.scales}
        for part, shape in wanted.items():
            if tuple(np.shape(got[part])) != shape:
                raise ValueError(f"{part} has the shape {np.shape(got[part])}, but the config "
                                 f"means {shape}; save with the config of these parameters")
        found.update(got)

    try:
        jax.tree_util.tree_map_with_path(take, transformer.specs(cfg), params,
                                         is_leaf=trees.is_spec)
    except ValueError as error:
        if "the config means" in str(error):
            raise
        raise ValueError(f"the parameters are not those of the config ({error})") from None
    return found


def _sharding_of(plan: Plan, shardings: Shardings) -> Callable[[str], Sharding | None]:
    """The sharding of a leaf by its name."""
    if shardings is None:
        return lambda name: None
    if callable(shardings):
        return lambda name: shardings(name, plan.leaves[name][0])
    by_name = dict(trees.paths(shardings))

    def find(name: str) -> Sharding:
        if name not in by_name:
            raise ValueError(
                f"there is no sharding for {name}; give a function of (name, shape), which FP8 "
                "matrices need, whose shapes are those that products read"
            )
        return by_name[name]

    return find


def nothing(done: int, total: int) -> None:
    """Show no progress."""
