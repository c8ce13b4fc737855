"""Bytes of training and of serving by part, for `dsjax show`; counted, nothing is allocated."""

from __future__ import annotations

import dataclasses
from typing import Any

from rich import box
from rich.table import Table

from dsjax.config.run import RunConfig
from dsjax.runtime import needs

FORMS = {"float32": "float32", "bfloat16": "bfloat16", "fp8": "bfloat16"}
"""How weights are held, and the cache beside them."""


def training(run: RunConfig) -> dict[str, int]:
    """Bytes of all devices together, by part, for the config's batch, length and remat."""
    found = dataclasses.asdict(needs.training(run))
    del found["first_gradients"]
    found["activations"] += found.pop("mtp_activations")
    return found


def serving(run: RunConfig, context: int) -> dict[str, dict[str, int]]:
    """Bytes by part of one row of `context` positions, by form."""
    def one(form: str, cache: str) -> dict[str, int]:
        main, all_ = (needs.serving(run.model, 1, context, weights=form, cache=cache, depth=depth)
                      for depth in (0, run.model.mtp_depth))
        return {"weights": main.weights, "mtp_weights": all_.weights - main.weights,
                "cache": main.cache, "mtp_cache": all_.cache - main.cache, "logits": main.logits}

    return {form: one(form, cache) for form, cache in FORMS.items()}


def tables(run: RunConfig, context: int) -> list[Table]:
    """Draw both."""
    return [_training(run), _serving(run, context)]


def _training(run: RunConfig) -> Table:
    train, found = run.train, training(run)
    cut = f" in {train.microbatches:,} microbatches" if train.microbatches > 1 else ""
    drawn = _table(f"training {train.batch_size:,} rows of {train.seq_len:,} tokens{cut}, all "
                   "devices together", "bytes")
    for name, said in (("masters", "masters, float32"),
                       ("moments", f"moments, {run.optimizer.moments}"),
                       ("gradients", "gradients, float32"),
                       ("activations", f"activations with remat {run.machine.remat}, at least"),
                       ("logits", f"logits of {needs.CHUNK} positions of every row"),
                       ("batch", "the batch"),
                       ("average", "average of the parameters, on the host")):
        if found[name]:
            drawn.add_row(said, f"{found[name]:,}")
    return drawn


def _serving(run: RunConfig, context: int) -> Table:
    found = serving(run, context)
    drawn = _table(f"serving one row of {context:,} tokens", *found)
    drawn.caption = "beside fp8 weights (128 x 128 scales, the rest bfloat16) the cache is bfloat16"
    drawn.caption_justify = "left"
    for name, said in (("weights", "weights"), ("mtp_weights", "MTP weights"),
                       ("cache", "cache"), ("mtp_cache", "MTP cache"),
                       ("logits", "logits")):
        if any(parts[name] for parts in found.values()):
            drawn.add_row(said, *(f"{parts[name]:,}" for parts in found.values()))
    return drawn


def _table(title: str, *heads: Any) -> Table:
    drawn = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    drawn.add_column("part", no_wrap=True)
    for head in heads:
        drawn.add_column(head, justify="right", no_wrap=True)
    return drawn
