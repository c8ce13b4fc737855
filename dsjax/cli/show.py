"""`dsjax show CONFIG`: a model's sizes part by part."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any

from rich import box
from rich.table import Table

from dsjax.config.flags.flag_tree import Mark, Word
from dsjax.config.run import RunConfig
from dsjax.disk import to_json
from dsjax.model.count import Count, count
from dsjax.runtime import needs
from dsjax.terminal import Console


@dataclass(frozen=True)
class Show:
    """Print a config's parameters, training FLOPs and cache bytes a token, part by part.

    Then the bytes of training as the config would (its batch, rows and recomputation), and of
    serving. Any field of the run can be overridden:

      dsjax show deepseek_v3
      dsjax show tiny --model.layers 8
    """

    config: Annotated[str, Word("CONFIG")]
    """A name (tiny, small, deepseek_v3, ...), a file with one config() or the folder of a run."""
    run: Annotated[RunConfig, Mark.INLINE]
    seq_len: int = 4096
    """Tokens a row, for the FLOPs of attention and the cache of serving."""
    json: bool = False
    """Print one JSON object: params_total, params_mtp, params_active, flops_per_token,
    kv_bytes_per_token, the list of parts, training_bytes and serving_bytes."""

    def __post_init__(self) -> None:
        """Refuse rows of nothing."""
        if self.seq_len < 1:
            raise ValueError(f"Show.seq_len={self.seq_len} must be at least 1; give a number of "
                             "tokens")


def main(args: Show) -> int:
    """Print the table; returns the exit status."""
    run, seq_len = args.run, args.seq_len
    sizes = count(run.model, seq_len)
    if args.json:
        print(to_json({"config": run.name, **dataclasses.asdict(sizes),
                       "training_bytes": training(run),
                       "serving_bytes": serving(run, seq_len)}))
    else:
        Console().print_whole(table(run.name, sizes), *byte_tables(run, seq_len))
    return 0


def table(name: str, sizes: Count) -> Table:
    """Draw the sizes."""
    title = f"{name}: training FLOPs and cache bytes are a token's, in rows of {sizes.length:,}"
    drawn = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0),
                  show_footer=True)
    columns = [
        ("part", "main model", "left"),
        ("parameters", f"{sizes.params_total:,}", "right"),
        ("active", f"{sizes.params_active:,}", "right"),
        ("MFLOP", f"{sizes.flops_per_token / 1e6:,.2f}", "right"),
        ("cache B", f"{sizes.kv_bytes_per_token:,}", "right"),
    ]
    for head, foot, justify in columns:
        drawn.add_column(head, foot, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for part in sizes.parts:
        drawn.add_row(
            part.name,
            f"{part.params:,}",
            f"{part.params_active:,}",
            f"{part.flops_per_token / 1e6:,.2f}",
            f"{part.kv_bytes_per_token:,}" if part.kv_bytes_per_token else "",
        )
    if sizes.params_mtp:
        drawn.caption = f"and {sizes.params_mtp:,} parameters in the MTP modules, counted apart"
        drawn.caption_justify = "left"
    return drawn


FORMS = {"float32": "float32", "bfloat16": "bfloat16", "fp8": "bfloat16"}
"""Forms of the weights, each with the dtype of the cache beside it."""


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


def byte_tables(run: RunConfig, context: int) -> list[Table]:
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
