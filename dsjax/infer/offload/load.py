"""A folder as a model whose routed experts stay where they are, or in the host's memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax

from dsjax import weights
from dsjax.checkpoint import reader, sink
from dsjax.checkpoint.reader import Weights
from dsjax.config.model import ModelConfig
from dsjax.errors import UserError
from dsjax.infer.offload.cache import ExpertCache, Room
from dsjax.infer.offload.store import InMemory, Store, expert_leaves, split, without_experts
from dsjax.layers.backend import Backend
from dsjax.model import transformer
from dsjax.model.transformer import TransformerParams
from dsjax.numerics import precision as numerics
from dsjax.runtime import fit


def load(folder: Path, cfg: ModelConfig, backend: Backend, dtype: str, *, room: Room,
         say: Callable[[str], None]) -> tuple[TransformerParams, ExpertCache]:
    """Read everything but the routed experts onto the device, and open a cache of these.

    `cfg` is the folder's without MTP modules; dtype: as of `weights.load`. Returns parameters as
    programs read them, each layer a stack of its own. Every number is the one that `weights.load`
    and `generate.ready` would have put there.
    """
    if cfg.moe is None:
        raise UserError(f"{folder} has no routed experts that could lie elsewhere; leave the cache "
                        "of experts out")
    assert not cfg.mtp_depth, "an offloaded model has no MTP modules"
    is_released = weights.is_released(folder)

    def read(found: Weights) -> tuple[TransformerParams, Store]:
        trunk, _ = split(reader.as_dtype(found, dtype))
        experts: Weights = split(reader.as_dtype(found, _slot_dtype(dtype, backend)))[1]
        needed = {"other parameters": sum(leaf.nbytes for leaf in trunk.leaves.values()),
                  "the cache of experts": min(room.nbytes, Store(experts).nbytes)}
        if not is_released and jax.local_devices()[0].platform == "cpu":
            needed["all experts"] = Store(experts).nbytes
        with fit.refusing(f"reading the parameters in {folder}", needed, REMEDY):
            arrays = sink.arrays(trunk) | dict.fromkeys(expert_leaves(cfg))
            return (ready(reader.tree(cfg, arrays), cfg, backend),
                    Store(experts if is_released else InMemory(experts)))

    choice = weights.Choice(model=cfg, mtp=False, is_read_again=True)
    params, store = weights.use(folder, read, choice=choice, say=say)
    cache = ExpertCache(store, cfg, backend.precision, room)
    held = cache.slots.count / (len(store.layers) * store.experts)
    where = "its files" if is_released else "the host's memory"
    say(f"{folder}: {fit.said(store.nbytes)} of routed experts stay in {where}, and "
        f"{cache.slots.count:,} slots on the device hold {min(held, 1):.0%} of them")
    return params, cache


REMEDY = "give the cache of experts less, or use a machine with more memory"


def _slot_dtype(dtype: str, backend: Backend) -> str:
    """Dtype in which experts are read: operands' own where that is bfloat16, half the bytes."""
    narrow = backend.precision.operand_dtype
    return "bfloat16" if dtype == "dequantized" and narrow is not None else dtype


def ready(params: TransformerParams, cfg: ModelConfig, backend: Backend) -> TransformerParams:
    """Quantize what is on the device to the backend's precision, once, and write layers out."""
    if backend.precision.casts_weights:
        specs = without_experts(transformer.specs(cfg))
        operands = numerics.quantize_weights(params, specs, backend.precision)
        params = numerics.attach(params, operands, specs)
    return transformer.written_out(params)

