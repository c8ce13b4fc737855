"""Arguments of a model as the harness hands them on: `--model_args` and the flags beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax

from dsjax.config.fields import counted, did_you_mean, seed_in_range, well_typed
from dsjax.config.parallel import ParallelConfig
from dsjax.errors import UserError
from dsjax.infer import Choice
from dsjax.infer.engine.device import Setting

UNSAID = "cuda:0"
"""The harness's `--device` where none is given; JAX chooses the devices."""


@dataclass(frozen=True)
class ModelArgs:
    """Settings of a model, named as the flags of `dsjax evaluate`."""

    folder: str
    """Run folder, or a released checkpoint."""
    precision: Literal["fp32", "tf32", "bf16", "fp8"] | None = None
    """Operands of the matrix products; None is the run's own, fp32 for a released checkpoint."""
    context: int | None = None
    """Positions of a text, or of a prompt and its answer; None is the model's."""
    end_token: str | None = None
    """Name of the token that ends a text, where no file beside the tokenizer names it."""
    max_gen_toks: int = 256
    """New tokens of an answer, where the task names no number."""
    seed: int = 0
    """Seed of answers that are sampled."""
    data: int = 1
    """Devices that hold rows of their own."""
    fsdp: int = 1
    """Devices that share each matrix."""
    expert: int = 1
    """Devices that share the routed experts."""
    slots: int = 16
    """Requests that are answered at once on each device."""
    pages: int | None = None
    """Pages of 32 positions that the requests of a device share."""
    page_dtype: Literal["activations", "fp8"] = "activations"
    """Numbers in pages."""
    draft: bool = False
    """Speculate with the model's MTP modules."""
    deterministic: bool = False
    """Read prompts by the programs that decode."""

    def __post_init__(self) -> None:
        """Refuse values of another type, and counts of nothing."""
        well_typed(self)
        counted("ModelArgs", slots=self.slots, max_gen_toks=self.max_gen_toks)
        for name in ("context", "pages"):
            if (value := getattr(self, name)) is not None:
                counted("ModelArgs", 2 if name == "context" else 1, **{name: value})
        seed_in_range(self.seed, "seed=")
        assert self.choice, "a layout is made or refused"

    @property
    def choice(self) -> Choice:
        """Settings to load the model with."""
        layout = ParallelConfig(data=self.data, fsdp=self.fsdp, expert=self.expert)
        return Choice(self.precision, layout, self.end_token)

    @property
    def setting(self) -> Setting:
        """Settings of the engine."""
        return Setting(slots=self.slots, max_len=self.context, pages=self.pages,
                       page_dtype=self.page_dtype, draft=self.draft,
                       is_deterministic=self.deterministic)


def read(given: Mapping[str, Any], batch_size: int | str | None = None,
         max_batch_size: int | None = None, device: str | None = None) -> ModelArgs:
    """Read what the harness was given; refuses what is unknown, in a sentence.

    batch_size: `auto`, `auto:N` or 1, the harness's default, leave the number of requests that are
    answered at once to `slots`; another number is that. Likelihoods have batches of their own.
    """
    known = [field.name for field in dataclasses.fields(ModelArgs)]
    for name in given:
        if name not in known:
            raise UserError(f"--model_args has no {str(name)[:60]!r}{did_you_mean(name, known)}; "
                            f"choose from {', '.join(known)}")
    if given.get("folder") in (None, ""):
        raise UserError("--model_args names no folder; give folder=, a run's or a released "
                        "checkpoint's")
    _platform(device)
    rows = _rows(batch_size, max_batch_size)
    if rows is not None and "slots" in given and given["slots"] != rows:
        raise UserError(f"slots={given['slots']} and the batch size {rows} are the same thing here "
                        "and differ; leave one out")
    full = {**given, "folder": str(given["folder"])} | ({} if rows is None else {"slots": rows})
    try:
        return ModelArgs(**full)
    except ValueError as error:
        raise UserError(f"--model_args: {error}") from None


def _rows(batch_size: int | str | None, most: int | None) -> int | None:
    """Requests at once, if a batch size asks for a number."""
    text = "auto" if batch_size is None else str(batch_size).strip()
    word, _, times = text.partition(":")
    if word == "auto" and (not times or times.isdecimal()):
        return most
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"the batch size {text[:40]!r} is neither `auto` nor a whole number from 1 "
                        "on; give one of them")
    return None if int(text) == 1 else int(text)


def _platform(device: str | None) -> None:
    """Refuse a device that JAX does not run on here, and a run of several processes."""
    if jax.process_count() > 1:
        raise UserError(f"{jax.process_count()} processes share the devices, and the harness asks "
                        "one model in one process; start one")
    if device in (None, UNSAID):
        return
    asked, here = device.split(":")[0], jax.default_backend()
    if {"cuda": "gpu", "rocm": "gpu"}.get(asked, asked) != here:
        raise UserError(f"--device {device} is not what JAX runs on here, {here}; leave it out, or "
                        "set JAX_PLATFORMS")
