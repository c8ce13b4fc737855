"""The numbers compared with transformers: logits, loss, gradients, greedy tokens and MTP.

The dsjax side; `peer` is the transformers side, and both return the same things by the same names.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dsjax.checkpoint.reader import OnDevices
from dsjax.config.loss import LossConfig
from dsjax.config.model import ModelConfig
from dsjax.infer.generate import Options, generate
from dsjax.infer.sample import Sampling
from dsjax.layers.backend import single
from dsjax.model import loss, mtp, transformer
from dsjax.model.transformer import TransformerParams
from dsjax.released import hf, write
from tests.agreement import compiled

GREEDY = 64
RTOL = 1e-4  # the bound; float32 rounding of either side is about 1e-6


def load(folder: Path) -> tuple[ModelConfig, TransformerParams]:
    return hf.load(folder, say=lambda sentence: None)


def logits(p: TransformerParams, cfg: ModelConfig, tokens: np.ndarray) -> np.ndarray:
    return np.asarray(compiled(lambda p, t: transformer.logits(p, t, cfg))(p, tokens))


@dataclass(frozen=True)
class Found:
    """The numbers that one model gives for tokens [B, T]."""

    logits: np.ndarray  # [B, T, V]
    loss: float  # mean next-token loss
    gradients: dict[str, np.ndarray]  # of that loss, by released names, those that have one
    mtp: list[np.ndarray]  # [B, T-k, V] of module k, at the positions all of whose tokens are there


def everything(p: TransformerParams, cfg: ModelConfig, tokens: np.ndarray) -> Found:
    """All of it, in one program."""

    def value(p: TransformerParams, tokens: jax.Array) -> jax.Array:
        ones = jnp.ones_like(tokens)
        batch = loss.Batch(tokens, ones, ones.astype(jnp.float32))
        objective = loss.Objective(loss.count(batch), 0.0, LossConfig(balance=0.0))
        return loss.loss(p, batch, objective, cfg, single())[0]

    def run(p: TransformerParams, tokens: jax.Array) -> tuple:
        return (transformer.logits(p, tokens, cfg), jax.value_and_grad(value)(p, tokens),
                _mtp_logits(p, cfg, tokens))

    made, (nats, gradients), drafts = jax.device_get(compiled(run)(p, tokens))
    # Nothing here asks for a gradient of the router's bias, nor of the MTP modules.
    by_name = {
        name: g
        for name, g in released(cfg, gradients).items()
        if not name.endswith("bias") and _layer(name) < cfg.layers
    }
    return Found(made, float(nats), by_name, drafts)


def _layer(name: str) -> int:
    parts = name.split(".")
    return int(parts[2]) if parts[1] == "layers" else 0


def _mtp_logits(p: TransformerParams, cfg: ModelConfig, tokens: jax.Array) -> list[jax.Array]:
    backend = single()
    ones = jnp.ones_like(tokens)
    previous = transformer.hidden(p, tokens, ones, cfg, backend).x
    embed = functools.partial(transformer.embed, p, backend=backend)
    chain = mtp.chain(p.mtp, previous, tokens, ones, embed, cfg, backend)
    length = tokens.shape[1]
    return [transformer.head(p, made.x)[:, : length - k] for k, made in enumerate(chain, 1)]


def released(cfg: ModelConfig, tree: Any) -> dict[str, np.ndarray]:
    """A tree of parameters, or of their gradients, by released names."""
    weights = OnDevices(cfg, tree)
    return {
        o.name: write.make(o, weights, weights, False)[0]
        for o in write.outputs(cfg, weights.leaves, write.Form())
        if o.place.copy_of is None
    }


def greedy(p: TransformerParams, cfg: ModelConfig, prompt: np.ndarray,
           draft: bool = False) -> list[int]:
    """64 tokens after `prompt` [T], by the absorbed form with a cache."""
    sampling = Sampling(temperature=0.0, max_new_tokens=GREEDY)
    made = generate(p, cfg, [prompt.tolist()], sampling, Options(draft=draft))
    return list(made.completions[0].tokens)


def close(actual: np.ndarray, expected: np.ndarray, what: str) -> None:
    """Equal within 1e-4 of the largest entry."""
    assert actual.shape == expected.shape, f"{what}: {actual.shape} and {expected.shape}"
    error = np.abs(actual - expected).max() / max(np.abs(expected).max(), 1e-30)
    assert error <= RTOL, f"{what} differs by {error:.2e} of its largest entry"


def agree(ours: Found, theirs: Found) -> None:
    """Logits within 1e-4, loss, every gradient, MTP logits."""
    assert np.abs(ours.logits - theirs.logits).max() <= 1e-4
    assert abs(ours.loss - theirs.loss) <= 1e-5 * theirs.loss
    assert ours.gradients.keys() == theirs.gradients.keys()
    for name, gradient in theirs.gradients.items():
        close(ours.gradients[name], gradient, f"the gradient of {name}")
    assert len(ours.mtp) == len(theirs.mtp)
    for depth, (a, b) in enumerate(zip(ours.mtp, theirs.mtp), 1):
        assert np.abs(a - b).max() <= 1e-4, f"MTP module {depth}"
