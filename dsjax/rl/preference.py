"""Preference model: a reward learned from pairs of outputs, for questions that no rule judges.

R1's second reinforcement learning takes rules where there are rules and a model of preferences for
the rest (R1 report, sec. 2.3.4). The model is the policy's own architecture with a vector for its
head: the last hidden state of question and output, times the vector, is the reward. It learns from
pairs, of which one output was preferred, by Bradley and Terry's likelihood. Only differences within
a question are ever learned, so a reward means something within a group of outputs and nothing else.

Axes: B outputs (or pairs), T tokens, D model.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax import Array

from dsjax import disk, params, weights
from dsjax.config.model import ModelConfig
from dsjax.config.run import PrecisionConfig, RunConfig
from dsjax.config.stored import run_from_json, run_to_json
from dsjax.data.tokenizers import tokenizer
from dsjax.data.tokenizers.tokenizer import Tokenizer
from dsjax.errors import UserError
from dsjax.model import transformer
from dsjax.model.transformer import TransformerParams
from dsjax.numerics.wide import exact, wide
from dsjax.optim.adamw import adamw
from dsjax.params import spec
from dsjax.runtime import backend as backends

NUMBERS, SETTINGS = "preference.npz", "preference.json"
REMEDY = "name a folder that dsjax.rl.preference.save wrote"
Judging = Callable[[Sequence[tuple[str, str]]], list[float]]
"""(question, output) rows -> their rewards."""
ROWS, MULTIPLE = 64, 16
"""Outputs that are judged at once, and what lengths of rows are multiples of."""


@struct.dataclass
class PreferenceParams:
    """A transformer without its head, and the vector in the head's place."""

    trunk: TransformerParams
    vector: Array  # [D]


@dataclass(frozen=True)
class Pair:
    """Two outputs to one question, of which the first was preferred."""

    prompt: str
    chosen: str
    rejected: str


@dataclass(frozen=True)
class Settings:
    """Course of the training; R1's preference model reads its pairs once (report, sec. 2.3.4)."""

    steps: int = 60
    batch: int = 32
    """Pairs of a step."""
    learning_rate: float = 3e-4
    seed: int = 0


def bradley_terry(chosen: Array, rejected: Array) -> Array:
    """Return -log sigmoid(chosen - rejected), the loss of each pair's rewards. [B] each -> [B].

    P(first preferred) = exp(r_1) / (exp(r_1) + exp(r_2)): Bradley and Terry 1952; as a loss,
    InstructGPT eq. 1 (arXiv 2203.02155).
    """
    return jax.nn.softplus(rejected - chosen)


def rewards(p: PreferenceParams, tokens: Array, segments: Array, cfg: ModelConfig) -> Array:
    """Reward of each row. tokens, segments [B, T] int32 (0 is padding, at the end) -> [B] float32.

    The hidden state of a row's last token, after the final norm, times the vector.
    """
    backend = backends.backend_for(cfg, PrecisionConfig())
    x = transformer.hidden(p.trunk, tokens, segments, cfg, backend).x
    last = jnp.maximum((segments != 0).sum(axis=1) - 1, 0)
    final = jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0].astype(wide(x.dtype))
    return jnp.einsum("bd,d->b", final, p.vector.astype(wide(x.dtype)), precision=exact(x.dtype))


def loss(p: PreferenceParams, tokens: Array, segments: Array, cfg: ModelConfig) -> Array:
    """Mean Bradley-Terry loss of pairs. tokens, segments [2 B, T]: the chosen, then the rejected.
    """
    chosen, rejected = jnp.split(rewards(p, tokens, segments, cfg), 2)
    return bradley_terry(chosen, rejected).mean()


def train(folder: Path | str, pairs: Sequence[Pair], of: Settings = Settings(),
          say: Callable[[str], None] = print) -> tuple[PreferenceParams, ModelConfig, Tokenizer]:
    """Train a preference model from the weights of a folder, all of it, the vector from zeros.

    Returns parameters, config and tokenizer, which `save` takes. Pairs are drawn epoch by epoch.

    Raises:
        UserError: no pairs, or a folder without weights.
    """
    if not pairs:
        raise UserError("a preference model learns from pairs, and there are none; give some")
    cfg = dataclasses.replace(weights.model(folder), mtp_depth=0)
    words = tokenizer.load(Path(folder) / "tokenizer.json")
    trunk = weights.load(folder, "float32", choice=weights.Choice(model=cfg), say=say)
    p = PreferenceParams(trunk, jnp.zeros(cfg.d_model))
    specs = PreferenceParams(transformer.specs(cfg), spec((cfg.d_model,), (None,), "zeros"))
    optimizer = adamw(of.learning_rate, decay_mask=params.decay_mask(specs), weight_decay=0.0,
                      trainable=params.trainable_mask(specs), moment_dtype=jnp.float32)
    state = optimizer.init(p)

    @jax.jit
    def step(p: PreferenceParams, state: Any, tokens: Array, segments: Array
             ) -> tuple[PreferenceParams, Any, Array]:
        value, grads = jax.value_and_grad(loss)(p, tokens, segments, cfg)
        updates, state = optimizer.update(grads, state, p)
        return optax.apply_updates(p, updates), state, value

    sides = ([_row(words, one.prompt, one.chosen) for one in pairs],
             [_row(words, one.prompt, one.rejected) for one in pairs])
    length = _rounded(max(len(row) for side in sides for row in side))
    order, rng = np.zeros(0, np.int64), np.random.default_rng(of.seed)
    for number in range(1, of.steps + 1):
        while order.size < of.batch:
            order = np.concatenate([order, rng.permutation(len(pairs))])
        now, order = order[: of.batch], order[of.batch :]
        p, state, value = step(p, state, *_padded([side[i] for side in sides for i in now],
                                                  length))
        if number % 20 == 0 or number == of.steps:
            say(f"preference model, step {number} of {of.steps}: {float(value):.4f} nats a pair")
    return p, cfg, words


class Judge:
    """A preference model as a function of (question, output) pairs."""

    def __init__(self, p: PreferenceParams, cfg: ModelConfig, words: Tokenizer) -> None:
        """Hold a model; its program is compiled for each length of rows that comes."""
        self._p, self._words = p, words
        self._rewards = jax.jit(functools.partial(rewards, cfg=cfg))

    def __call__(self, rows: Sequence[tuple[str, str]]) -> list[float]:
        """Reward of each output, in the order of the rows."""
        found: list[float] = []
        ids = [_row(self._words, prompt, text) for prompt, text in rows]
        for start in range(0, len(ids), ROWS):
            some = ids[start : start + ROWS]
            full = [*some, *[some[0]] * (ROWS - len(some))]
            made = self._rewards(self._p, *_padded(full, _rounded(max(map(len, full)))))
            found += np.asarray(made, np.float64)[: len(some)].tolist()
        return found


def agreement(judge: Judging, pairs: Sequence[Pair]) -> float:
    """Share of pairs whose preferred output has the larger reward; equal ones count half."""
    chosen, rejected = (judge([(one.prompt, text) for one, text in zip(pairs, texts, strict=True)])
                        for texts in ([one.chosen for one in pairs],
                                      [one.rejected for one in pairs]))
    return float(np.mean([(a > b) + (a == b) / 2 for a, b in zip(chosen, rejected, strict=True)]))


def save(folder: Path | str, p: PreferenceParams, cfg: ModelConfig, words: Tokenizer) -> None:
    """Write a preference model into a folder: numbers, config and tokenizer."""
    folder, remedy = Path(folder), "make room, or name another folder"
    disk.make_folder(folder, remedy)
    held = io.BytesIO()
    arrays: dict[str, Any] = {name: np.asarray(leaf) for name, leaf in params.paths(p)}
    np.savez(held, **arrays)
    words.save(folder / "tokenizer.json")
    run_to_json(RunConfig(name="preference", model=cfg), folder / SETTINGS)
    disk.write_whole(folder / NUMBERS, held.getvalue(), remedy)


def load(folder: Path | str) -> Judge:
    """Read a preference model from the folder that `save` wrote.

    Raises:
        UserError: the folder holds none, or another one than its config says.
    """
    folder = Path(folder)
    if not (folder / NUMBERS).is_file():
        raise UserError(f"there is no preference model in {folder}; {REMEDY}")
    cfg = run_from_json(folder / SETTINGS).model
    words = tokenizer.load(folder / "tokenizer.json")
    like = PreferenceParams(transformer.specs(cfg), spec((cfg.d_model,), (None,), "zeros"))
    try:
        with (folder / NUMBERS).open("rb") as file, np.load(file, allow_pickle=False) as found:
            leaves = [jnp.asarray(found[name]) for name, _ in params.paths(like)]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{folder / NUMBERS} is no preference model ({disk.cause(error)}); "
                        f"{REMEDY}") from None
    for (name, one), leaf in zip(params.paths(like), leaves, strict=True):
        if leaf.shape != one.shape:
            raise UserError(f"{folder / NUMBERS} has {name} of shape {leaf.shape}, and its config "
                            f"says {one.shape}; {REMEDY}")
    tree = jax.tree.structure(like, is_leaf=params.is_spec)
    return Judge(jax.tree.unflatten(tree, leaves), cfg, words)


def _row(words: Tokenizer, prompt: str, text: str) -> list[int]:
    """Ids of a question and an output, each made alone as a policy has them, and the end."""
    return [*words.encode(prompt), *words.encode(text), words.end_id]


def _padded(rows: Sequence[list[int]], length: int) -> tuple[Array, Array]:
    """Tokens and segments [B, T] of rows."""
    tokens, segments = (np.zeros((len(rows), length), np.int32) for _ in range(2))
    for i, row in enumerate(rows):
        tokens[i, : len(row)], segments[i, : len(row)] = row, 1
    return jnp.asarray(tokens), jnp.asarray(segments)


def _rounded(length: int) -> int:
    return -(-length // MULTIPLE) * MULTIPLE
