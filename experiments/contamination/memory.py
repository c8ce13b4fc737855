"""Worth of passages to a model that read them 0, 1, 4 or 16 times.

The passages are cut out of the embedded corpus, in equal parts by lot, and each planted as a
document of its own among the rest of the text, once, four times, sixteen times or never. A passage
is known by heart where the model's likeliest tokens are its last eight, each after all before it:
greedy decoding would end it so.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import random
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs import tiny
from dsjax import infer
from dsjax.config.model import MLAConfig, ModelConfig, MoEConfig, dropless
from dsjax.config.run import (
    DataConfig,
    OutputConfig,
    PrecisionConfig,
    RunConfig,
    TrainConfig,
)
from dsjax.data import sources
from dsjax.infer import Model
from dsjax.layers.backend import Backend
from dsjax.model import transformer
from dsjax.model.transformer import TransformerParams
from dsjax.ops.token_loss import logprobs
from dsjax.train import loop
from experiments.common.command import Asked

TIMES = (0, 1, 4, 16)
EACH = 32
"""Passages of each group."""
CHARACTERS, LAST, ROW = 300, 8, 160
WORKS = 12
OVERLAPS = (0.08, 0.12)
"""Shares of a test set said, in articles of January 2025 that cannot be checked, to have stood in
two models' training data."""
COLUMNS = ("times read", "passages", "nats a token", "fewer than unread", "spread over seeds",
           "known by heart", "points of 12 % against 8 %")


def main(asked: Asked) -> None:
    """Train, score and write the record."""
    seeds = range(1 if asked.is_quick else asked.values["seeds"])
    losses: dict[int, list[float]] = {times: [] for times in TIMES}
    known: dict[int, list[float]] = {times: [] for times in TIMES}
    steps = 0
    for seed in seeds:
        groups, texts = planted(seed)
        run = config(asked.runs / f"memory-{seed}", texts, seed, asked.is_quick)
        steps = run.train.steps
        if not loop.train(run).is_complete:
            raise KeyboardInterrupt
        model = infer.load(run.output.folder or "")
        for times, own in groups.items():
            loss, by_heart = score(model, own)
            losses[times].append(loss)
            known[times].append(by_heart)
            print(f"seed {seed}, read {times} times: {loss:.3f} nats, {by_heart:.1%}", flush=True)
    rows = [row(times, losses, known) for times in TIMES]
    asked.write("memory", f"loss on passages that a model of {parameters()} parameters read among "
                f"others in {steps} steps", COLUMNS, rows, seeds=list(seeds), nats=losses,
                by_heart=known)


def row(times: int, losses: dict[int, list[float]], known: dict[int, list[float]]) -> list[Any]:
    """A row of the record; the last column is what 12 % rather than 8 % such items are worth."""
    gains = [unread - own for unread, own in zip(losses[0], losses[times], strict=True)]
    worth = float(np.mean(known[times]) - np.mean(known[0]))
    points = 100 * (OVERLAPS[1] - OVERLAPS[0]) * worth
    return [times, EACH * len(gains), f"{np.mean(losses[times]):.3f}", f"{np.mean(gains):.3f}",
            f"{min(gains):.3f} to {max(gains):.3f}", f"{np.mean(known[times]):.1%}",
            f"{points:.2f}"]


def planted(seed: int) -> tuple[dict[int, list[str]], list[str]]:
    """Passages by how often they stand in the training text, and its documents in their order."""
    draw = random.Random(seed)
    pieces = [work[at : at + 4000] for work in sources.shakespeare()[:WORKS]
              for at in range(0, len(work) - 4000, 4000)]
    chosen = draw.sample(range(len(pieces)), EACH * len(TIMES))
    groups: dict[int, list[str]] = {times: [] for times in TIMES}
    for i, number in enumerate(chosen):
        at = pieces[number].index(" ", 1500) + 1
        passage = pieces[number][at : at + CHARACTERS]
        pieces[number] = pieces[number][:at] + pieces[number][at + CHARACTERS :]
        groups[TIMES[i % len(TIMES)]].append(passage)
    texts = [*pieces, *(p for times, own in groups.items() for p in own for _ in range(times))]
    draw.shuffle(texts)
    return groups, texts


def model_config() -> ModelConfig:
    """The architecture of `tiny`, smaller."""
    return ModelConfig(
        vocab=1024, d_model=128, layers=3, dense_layers=1, dense_dim=384, init_std=0.02,
        attention=MLAConfig(heads=4, q_rank=64, kv_rank=32, nope_dim=16, rope_dim=16, value_dim=16),
        moe=MoEConfig(experts=8, experts_per_token=2, expert_dim=128, shared_experts=1, groups=1,
                      groups_per_token=1, scale=1.0))


def parameters() -> str:
    """Parameters of the model, in words."""
    count = sum(int(np.prod(spec.shape)) for spec in jax.tree.leaves(
        transformer.specs(model_config()), is_leaf=lambda leaf: hasattr(leaf, "shape")))
    return f"{count / 1e6:.1f} million"


def config(folder: Path, texts: list[str], seed: int, is_quick: bool) -> RunConfig:
    """The run that reads the texts once, about; writes them. One that is finished stays so."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder.with_suffix(".jsonl")
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return dataclasses.replace(
        tiny.config(), name="memory", seed=seed, model=model_config(),
        train=TrainConfig(steps=30 if is_quick else 750, batch_size=8, seq_len=128),
        data=DataConfig(train=str(path), heldout_fraction=0.01),
        precision=PrecisionConfig("fp32"),
        output=OutputConfig(folder=str(folder), eval_every=0, save_every=0, log_every=100))


@functools.partial(jax.jit, static_argnames=("cfg", "backend"))
def _scored(p: TransformerParams, tokens: jax.Array, targets: jax.Array, cfg: ModelConfig,
            backend: Backend) -> tuple[jax.Array, jax.Array]:
    segments = jnp.ones_like(tokens)
    x = transformer.hidden(p, tokens, segments, dropless(cfg), backend).x
    return logprobs(x, p.head, targets, backend.loss_chunk, jnp.dtype(jnp.float32))


def score(model: Model, passages: list[str]) -> tuple[float, float]:
    """Nats a token of the passages, and the share whose last tokens are the likeliest."""
    words, ids = model.tokenizer, np.zeros((len(passages), ROW + 1), np.int32)
    lengths = []
    for at, passage in zip(ids, passages, strict=True):
        own = [words.end_id, *words.encode(passage)][: ROW + 1]
        at[: len(own)] = own
        lengths.append(len(own) - 1)
    found, guess = map(np.asarray, _scored(model.params, ids[:, :-1], ids[:, 1:], model.cfg,
                                           model.backend))
    total = sum(-found[i, :n].sum() for i, n in enumerate(lengths))
    hits = [bool((guess[i, n - LAST : n] == ids[i, n - LAST + 1 : n + 1]).all())
            for i, n in enumerate(lengths)]
    return float(total) / sum(lengths), sum(hits) / len(hits)
