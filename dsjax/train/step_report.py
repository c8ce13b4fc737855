"""Report of a step: its line in metrics.jsonl, and what of it a person is shown.

One quantity has one name, in the file, on the display and in TensorBoard: `loss` is the next-token
loss in nats a target, `total_loss` what the gradients are of: that, the MTP losses and the balance
losses, weighted. `tokens` counts those read since the run began.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from dsjax.config.run import RunConfig
from dsjax.data import curriculum
from dsjax.model import count, tuned
from dsjax.report import metrics, plots
from dsjax.report.pace import Ended, Throughput
from dsjax.runtime.hardware import Peak
from dsjax.train.corpus import Corpus
from dsjax.train.step import StepMetrics

HIDDEN = ("targets", "tokens", "accuracy", "balance", "mtp_accuracy", "total_loss",
          "max_vio_by_layer")
"""Names of metrics that are written and not shown."""


def tick(speed: Throughput, run: RunConfig, ready: Ended) -> None:
    """Count a step's tokens and FLOPs for the run's speed."""
    length = curriculum.length_of(run.train, ready.step - 1)
    tokens = float(ready.metrics.targets)
    flops = tokens * count.training_flops(run.model, length)
    if tuned.is_partial(run):  # frozen matrices have two products, not three
        flops *= 2 / 3
    speed.tick(tokens, ready.began, ready.ended, flops)


def event(run: RunConfig, step: int, m: StepMetrics) -> dict[str, Any]:
    """Collect what a step computed, by name; the same wherever and however fast it ran."""
    values: dict[str, Any] = {
        "loss": m.next_token,
        "accuracy": m.accuracy,
        "total_loss": m.loss,
        "learning_rate": m.learning_rate,
        "grad_norm": m.grad_norm,
        "skipped": m.skipped,
        "targets": m.targets,
        "tokens": curriculum.tokens_after(run.train, step),
    }
    loads = np.asarray(m.loads)
    if loads.size:
        by_layer = metrics.max_violation(loads)
        values |= {
            "max_vio": by_layer.max(),
            "max_vio_by_layer": by_layer,
            "dead_experts": metrics.dead_experts(loads),
            "balance": m.balance,
        }
    if run.parallel.expert > 1:
        values["extra_rounds"] = m.extra_rounds
    if m.mtp.size:
        values |= {"mtp_loss": m.mtp[0], "mtp_accuracy": m.mtp_accuracy[0]}
    return values


def pace(run: RunConfig, speed: Throughput, peak: Peak | None) -> dict[str, float]:
    """Return the speed of a run, by the clock; nothing before it is known."""
    if not math.isfinite(speed.tok_s):
        return {}
    found = {"tok_s": round(speed.tok_s, 1)}
    if peak is not None:
        found["mfu"] = round(peak.share(speed.flop_s, run.parallel.devices), 4)
    return found


def shown(values: dict[str, Any]) -> dict[str, Any]:
    """Return what of an event a person is shown."""
    return {name: value for name, value in values.items() if name not in HIDDEN}


def of_the_model(run: RunConfig) -> dict[str, str]:
    """Describe a run's size for its header."""
    sizes = count.count(run.model, run.train.seq_len)
    mtp = f", {sizes.params_mtp:,} more in MTP modules" if sizes.params_mtp else ""
    rows, length = run.train.batch_size, run.train.seq_len
    ramp = "" if run.train.batch_size_start is None else f"{run.train.batch_size_start} to "
    return {
        "parameters": f"{sizes.params_total:,}, {sizes.params_active:,} active for a token{mtp}",
        "a step": f"{ramp}{rows} rows of {length} tokens: {rows * length:,} tokens",
    } | _of_the_part(run)


def _of_the_part(run: RunConfig) -> dict[str, str]:
    """Describe what learns, where it is a part of the model."""
    part = run.lora or run.experts
    if part is None:
        return {}
    said = f"all else rests, {part.base if part.base != 'stored' else 'as it is stored'}"
    if run.lora is not None:
        lora = run.lora
        return {"learns": f"adapters of rank {lora.rank}, alpha {lora.alpha:g}, of "
                          f"{', '.join(lora.targets)}; {said}"}
    assert run.experts is not None, "experts are the other part"
    how = (f"at least {run.experts.threshold:g} of each layer's {run.experts.score}s"
           if run.experts.chosen is None else run.experts.chosen)
    return {"learns": f"routed experts, {how}; {said}"}


def of_the_corpus(run: RunConfig, corpus: Corpus) -> str:
    """Describe a run's text once it is read: tokens, and how often the run will see them."""
    reads = curriculum.tokens_after(run.train, run.train.steps)
    rows = len(corpus.train) * corpus.train.length
    return (f"corpus: {corpus.train_tokens:,} tokens to learn from; {run.train.steps:,} steps read "
            f"{reads:,}, {reads / max(rows, 1):.3g} epochs")


def layer_labels(run: RunConfig) -> list[str]:
    """Names of the rows of `loads`: mixture layers of the main model, then MTP modules."""
    main = [f"layer {i}" for i in range(run.model.layers) if run.model.stack_of(i)[0].is_moe]
    return main + [f"MTP {k + 1}" for k in range(run.model.mtp_depth)]


def pictures(run: RunConfig, out: Path, baselines: dict[str, float]) -> list[Path]:
    """Draw the loss curve and the experts' loads of a run's metrics into its folder."""
    source = out / "metrics.jsonl"
    drawn = [out / "loss.png"]
    plots.loss_curve(source, drawn[0], baselines, run.name)
    labels = layer_labels(run)
    steps, loads = metrics.recorded_loads(metrics.read_metrics(source, "eval"), len(labels))
    if steps:
        drawn.append(out / "experts.png")
        plots.expert_loads(loads, drawn[-1], run.name, labels, steps)
    return drawn
