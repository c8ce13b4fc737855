"""The one way in for weights: a released folder or a run's, onto any devices.

    params = weights.load("DeepSeek-V2-Lite", "bfloat16", shardings)
    params = weights.load("runs/tiny")

A released folder has safetensors and a config.json that names a `model_type`; a run folder is what
`dsjax train` or `dsjax convert` wrote; one that learnt a part of another folder's weights is read
merged with them. All are read by `checkpoint.reader`'s form and streamed
onto devices by `checkpoint.sink`: each process reads what its own devices hold, no device ever
holds more than its shards and one chunk of 16 MB, and no host more than a few chunks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from dsjax import disk
from dsjax.checkpoint import files as names
from dsjax.checkpoint import multihost, reader, run_weights, sink, store
from dsjax.checkpoint.manifest import MANIFEST, hash_of
from dsjax.checkpoint.reader import Weights
from dsjax.checkpoint.run_weights import RunWeights
from dsjax.checkpoint.sink import Progress, Shardings
from dsjax.checkpoint.tuned import Described, Merged, bits, held
from dsjax.config.model import ModelConfig
from dsjax.config.run import RunConfig
from dsjax.config.stored import run_from_json
from dsjax.errors import UserError
from dsjax.errors import say as to_stderr
from dsjax.model import tuned
from dsjax.model.transformer import TransformerParams
from dsjax.released import files, read
from dsjax.runtime import fit

Say = Callable[[str], None]
T = TypeVar("T")
BASE = "base"  # key of a checkpoint's extra: the identity of the weights a part was learnt of
REMEDY = "give the folder of a released checkpoint, or one that `dsjax train` wrote, as runs/tiny"


@dataclass(frozen=True)
class Choice:
    """The part of a folder's weights that is wanted, and how it is opened."""

    model: ModelConfig | None = None
    """The model they must be of; None is the folder's own."""
    which: str = "params"
    """`params`, or `ema` for the average where a run kept one."""
    mtp: bool | None = None
    """Of a released checkpoint: False leaves its MTP modules, True wants them, None takes them
    where they are."""
    is_read_again: bool = False
    """Of a released checkpoint: True where parts of its files will be read many times."""


def is_released(folder: Path | str) -> bool:
    """True if a folder's config.json is a released checkpoint's."""
    config = Path(folder) / files.CONFIG
    return config.is_file() and "model_type" in disk.read_object(config, REMEDY)


def refuse_empty(folder: Path | str, flag: str = "") -> None:
    """Refuse a folder, given by a flag, that holds neither a released checkpoint nor a run's."""
    folder = Path(folder)
    if not is_released(folder) and not (folder / store.CHECKPOINTS).is_dir():
        raise UserError(f"{flag} {folder}".strip() + " holds no weights: neither checkpoints nor a "
                        f"config.json that names a model_type; {REMEDY}")


def model(folder: Path | str, choice: Choice = Choice()) -> ModelConfig:
    """Return the config of the model whose weights a folder holds; no number is read."""
    if choice.model is not None:
        return choice.model
    refuse_empty(folder)
    if not is_released(folder):
        return run_from_json(Path(folder) / files.CONFIG).model
    return read.open_folder(Path(folder), mtp=choice.mtp).weights.cfg


def refuse_another(folder: Path | str, cfg: ModelConfig) -> None:
    """Refuse weights that are not of this model, by names and shapes; no number is read.

    One process calls this, before anything is written for a run that starts from them.
    """
    folder = Path(folder)
    refuse_empty(folder)
    if is_released(folder):
        reader.of_model(read.open_folder(folder, "float32").weights, cfg, f"{folder}")
    elif (own := _of_a_part(folder)) is not None:  # whole when it is read, whatever it holds
        refuse_another(_base_of(own), own.model)
        reader.of_model(Described(own.model), cfg, f"{folder}")
    else:
        run_weights.look(folder, cfg,
                         lambda found: reader.of_model(found, cfg, f"{found.where}"))


def _of_a_part(folder: Path) -> RunConfig | None:
    """The run of a folder that learnt a part of other weights; None for any other folder."""
    config = folder / files.CONFIG
    run = run_from_json(config) if config.is_file() else None
    return run if run is not None and tuned.is_partial(run) else None


def _base_of(run: RunConfig) -> Path:
    """The folder whose weights a run has learnt a part of."""
    folder = Path(str(run.init_from))
    if not folder.is_dir():
        raise UserError(f"{folder}, whose weights {run.name} has learnt a part of, is not there; "
                        "put it back")
    return folder


def use(folder: Path | str, with_weights: Callable[[Weights], T], dtype: str = "stored", *,
        choice: Choice = Choice(), say: Say = to_stderr) -> T:
    """Return what a function makes of the weights in a folder, which are open while it runs.

    dtype: `float32`, `bfloat16`, `dequantized`, `stored` or `fp8`, see `reader.as_dtype`. `say`
    gets a sentence about whatever is assumed or passed over. Several processes call this together
    and read the same checkpoint.
    """
    folder = Path(folder)
    refuse_empty(folder)
    if not is_released(folder):
        cfg = model(folder, choice)

        def in_dtype(opened: RunWeights | Merged) -> T:
            part = reader.of_model(opened, cfg, f"{opened.where}")
            return with_weights(reader.as_dtype(part, dtype))

        return use_run(folder, cfg, in_dtype, say=say, which=choice.which,
                       is_wide=dtype == "float32")
    if choice.which != "params":
        raise UserError(f"{folder} is a released checkpoint, which keeps no average of its "
                        "parameters; leave the average out, or give a run that has one")
    opened = read.open_folder(folder, dtype, choice.mtp, choice.is_read_again)
    for remark in opened.remarks:
        say(f"{folder}: {remark}")
    multihost.first_checks(opened.check, f"{folder}")
    weights = opened.weights
    return with_weights(weights if choice.model is None
                        else reader.of_model(weights, choice.model, f"{folder}"))


def use_run(folder: Path, cfg: ModelConfig, with_run: Callable[[Any], T], *, say: Say = to_stderr,
            which: str = "params", is_wide: bool = False) -> T:
    """As `run_weights.read`, of a run's newest checkpoint; a part that learnt is merged.

    is_wide: merged matrices are float32, however narrow the frozen ones are.

    Raises:
        UserError: a run learnt a part of weights that are not there any more, or are others now.
    """
    own = _of_a_part(folder)
    if own is None:
        return run_weights.read(folder, cfg, with_run, say=say, which=which)

    def with_part(learnt: RunWeights) -> T:
        was = learnt.manifest.extra.get(BASE)
        return use_base(own, lambda base: with_run(Merged(base, learnt, own, is_wide)), say=say,
                        was=was)

    return run_weights.read(folder, own.model, with_part, say=say, which=which)


def use_base(run: RunConfig, with_weights: Callable[[Weights], T], *, say: Say = to_stderr,
             was: str | None = None) -> T:
    """Return what a function makes of the weights that a run freezes, in the form it holds them in.

    was: the identity that they had (`identity`); None takes any.
    """
    part = run.lora or run.experts
    assert part is not None, "a run that freezes weights learns a part"
    folder = _base_of(run)
    now = identity(folder)
    if was not in (None, now):
        raise UserError(f"{folder} holds other weights ({now}) than those that {run.name} has "
                        f"learnt a part of ({was}); put those back")
    return use(folder, lambda base: with_weights(held(base, part.base)),
               choice=Choice(model=run.model), say=say)


def identity(folder: Path | str) -> str:
    """Sixteen hex digits of a folder's weights: of a run's newest manifest, a release's tensors."""
    folder = Path(folder)
    refuse_empty(folder)
    if is_released(folder):
        return files.fingerprint(folder)
    newest = folder / store.CHECKPOINTS / names.name(max(names.steps(folder / store.CHECKPOINTS)))
    return hash_of(newest / MANIFEST)[:16]


def load(folder: Path | str, dtype: str = "stored", shardings: Shardings = None, *,
         choice: Choice = Choice(), say: Say = to_stderr,
         progress: Progress | None = None) -> TransformerParams:
    """Read a folder's weights onto devices, each number onto the shards that hold it.

    dtype: as in `use`; FP8 that stays is `Scaled`. shardings: see `sink.Shardings`.
    """
    return use(folder, lambda weights: _streamed(weights, folder, shardings, progress), dtype,
               choice=choice, say=say)


def load_base(run: RunConfig, shardings: Shardings = None, *, say: Say = to_stderr,
              was: str | None = None) -> TransformerParams:
    """As `load`, of the weights that a run freezes; `was`: as in `use_base`.

    Codes of 8 bits are bits (`precision.as_bits`).
    """
    return use_base(
        run, lambda weights: _streamed(bits(weights), str(run.init_from), shardings, None),
        say=say, was=was)


def _streamed(weights: Weights, folder: Path | str, shardings: Shardings,
              progress: Progress | None) -> TransformerParams:
    needed = {"parameters": sink.nbytes_here(weights, shardings)}
    with fit.refusing(f"reading the parameters in {folder}", needed,
                      "use a machine with more memory, or more devices"):
        return sink.load(weights, shardings, progress)
