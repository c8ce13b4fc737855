"""Weights from the trainer to the engine in the same process.

The trainer keeps float32 masters where a run's layout has them; the engine reads them where it
decodes. On one device the two layouts agree: embedding, head, final norm and stacks of one layer
are the trainer's own arrays, without a copy, and the layers of longer stacks are copied out of
them, as decoding reads layers one by one. Over a mesh parts that rest elsewhere are moved first.

The next training step takes the shared arrays with its donated state, so the engine must be given
the new ones before it serves again. Pages of the cache are forgotten: they hold what the former
weights made of their tokens, whoever asks for the same question again.
"""

from __future__ import annotations

import jax
from jax.sharding import Mesh

from dsjax.config.model import ModelConfig
from dsjax.config.run import RunConfig
from dsjax.data.tokenizers.tokenizer import Tokenizer
from dsjax.infer.engine.device import Device, Setting
from dsjax.infer.engine.engine import Engine
from dsjax.infer.model import Model
from dsjax.model import transformer
from dsjax.model.transformer import TransformerParams
from dsjax.parallel import rules
from dsjax.rl.update import rl_of
from dsjax.runtime import backend as backends


def open_engine(run: RunConfig, params: TransformerParams, words: Tokenizer,
                mesh: Mesh | None) -> Engine:
    """Make the engine of a run's rollouts on the trainer's devices, with room for all at once."""
    cfg = rl_of(run)
    backend = backends.for_decoding(run.model, run.precision, run.parallel, mesh,
                                    machine=run.machine)
    length = cfg.max_prompt_tokens + cfg.max_new_tokens
    model = Model(run.model, placed(params, run.model, mesh), words, length, backend, mesh,
                  run.parallel)
    ranks = 1 if mesh is None else mesh.size
    return Engine(Device(model, Setting(
        slots=-(-cfg.rows // ranks), max_len=length, chunk=cfg.max_prompt_tokens, page_size=16,
        top_logprobs=1, keep_routes=run.model.moe is not None and cfg.replay_routes)))


def exchange(engine: Engine, params: TransformerParams, cfg: ModelConfig,
             mesh: Mesh | None) -> None:
    """Let the engine serve with the trainer's present parameters."""
    engine.exchange(placed(params, cfg, mesh))


def placed(params: TransformerParams, cfg: ModelConfig, mesh: Mesh | None) -> TransformerParams:
    """Parameters where decoding uses them; the same arrays wherever they are there already."""
    if mesh is None:
        return params
    return jax.device_put(params, rules.used_shardings(transformer.specs(cfg), mesh))
