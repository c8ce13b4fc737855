"""The one way in for weights: a released folder or a run's, onto any devices.

    params = weights.load("DeepSeek-V2-Lite", "bfloat16", shardings)
    params = weights.load("runs/tiny")

A released folder has safetensors and a config.json that names a `model_type`; a run folder is what
`dsjax train` or `dsjax convert` wrote. Both are read by `checkpoint.reader`'s form and streamed
onto devices by `checkpoint.sink`: each process reads what its own devices hold, no device ever
holds more than its shards and one chunk of 16 MB, and no host more than a few chunks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from dsjax import disk
from dsjax.checkpoint import multihost, reader, run_weights, sink, store
from dsjax.checkpoint.reader import Weights
from dsjax.checkpoint.run_weights import RunWeights
from dsjax.checkpoint.sink import Progress, Shardings
from dsjax.config.model import ModelConfig
from dsjax.config.stored import run_from_json
from dsjax.errors import UserError
from dsjax.errors import say as to_stderr
from dsjax.model.transformer import TransformerParams
from dsjax.released import files, read
from dsjax.runtime import fit

Say = Callable[[str], None]
T = TypeVar("T")
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
    else:
        run_weights.look(folder, cfg,
                         lambda found: reader.of_model(found, cfg, f"{found.where}"))


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

        def in_dtype(opened: RunWeights) -> T:
            part = reader.of_model(opened, cfg, f"{opened.where}")
            return with_weights(reader.as_dtype(part, dtype))

        return run_weights.read(folder, cfg, in_dtype, say=say, which=choice.which)
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


def load(folder: Path | str, dtype: str = "stored", shardings: Shardings = None, *,
         choice: Choice = Choice(), say: Say = to_stderr,
         progress: Progress | None = None) -> TransformerParams:
    """Read a folder's weights onto devices, each number onto the shards that hold it.

    dtype: as in `use`; FP8 that stays is `Scaled`. shardings: see `sink.Shardings`.
    """
    def stream(weights: Weights) -> TransformerParams:
        needed = {"parameters": sink.nbytes_here(weights, shardings)}
        with fit.refusing(f"reading the parameters in {folder}", needed,
                          "use a machine with more memory, or more devices"):
            return sink.load(weights, shardings, progress)

    return use(folder, stream, dtype, choice=choice, say=say)
