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

Peak host memory beyond the parameters themselves is a few chunks of 16 MB when loading and twice a
file of the largest tensor's size when saving, whatever the model's size (experiments/weights_io).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from dsjax.checkpoint import sink
from dsjax.checkpoint.reader import OnDevices
from dsjax.checkpoint.sink import Progress, Shardings
from dsjax.config.loss import LossConfig
from dsjax.config.model import ModelConfig
from dsjax.errors import say as to_stderr
from dsjax.model.transformer import TransformerParams
from dsjax.released import read
from dsjax.released.target import Target
from dsjax.released.write import Export, Form, read_template


def load(path: Path | str, dtype: str = "float32", *, shardings: Shardings = None,
         mtp: bool | None = None, say: Callable[[str], None] | None = None,
         progress: Progress | None = None) -> tuple[ModelConfig, TransformerParams]:
    """Read a released checkpoint onto devices: its config, and parameters with those shardings.

    dtype: `float32` or `bfloat16` for all (FP8 dequantized), `stored` for each array as it is, with
    FP8 matrices as `Scaled`, `fp8` the same and an error where there are none. The router's bias is
    float32 in the first two. mtp: False leaves the MTP modules, True wants them, None takes them
    where they are. `say` gets sentences about what was assumed (None: standard error).
    """
    opened = read.open_folder(Path(path), dtype, mtp)
    for remark in opened.remarks:
        (say or to_stderr)(f"{path}: {remark}")
    opened.check()
    return opened.weights.cfg, sink.load(opened.weights, shardings, progress)


def save(path: Path | str, cfg: ModelConfig, params: TransformerParams,
         fp8: bool | Literal["ue8m0"] = False, *, dtype: str | None = None,
         like: Path | str | None = None, loss: LossConfig | None = None) -> None:
    """Write parameters as a released checkpoint that transformers, vLLM and SGLang load.

    fp8: matrices become E4M3 with one scale a 128x128 block ("ue8m0": a power of two, as V3.1),
    `Scaled` leaves are written as they are, and the rest is bfloat16. Otherwise arrays keep their
    dtype, or get `dtype`, and `Scaled` leaves are dequantized to bfloat16. `like` is a released
    checkpoint whose token ids, context length and tokenizer files are taken over. `loss` gives
    aux_loss_alpha, with which others train on; without it, that of `like`.
    """
    form = Form(bool(fp8), fp8 == "ue8m0", dtype)
    weights = OnDevices(cfg, params)
    template = read_template(Path(like)) if like is not None else None
    Export(weights, form, template, loss).write(Target(Path(path), None), lambda done, total: None)
