"""A released folder of random weights, as large as is asked for, written a shard at a time.

The layout is V3's: sharded bfloat16 safetensors with an index, and a config.json. Numbers of a
shard come from one drawn tile, rolled, so that writing is bound by the disk.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from dsjax import disk
from dsjax.data.tokenizers import tokenizer
from dsjax.released import config as released
from dsjax.released import files, names

CONFIG: dict[str, Any] = {
    "model_type": "deepseek_v3", "hidden_size": 2048, "intermediate_size": 6144,
    "num_attention_heads": 16, "num_key_value_heads": 16, "kv_lora_rank": 256, "q_lora_rank": 512,
    "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64, "first_k_dense_replace": 1,
    "n_routed_experts": 256, "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4,
    "moe_intermediate_size": 512, "n_shared_experts": 1, "routed_scaling_factor": 2.5,
    "norm_topk_prob": True, "max_position_embeddings": 4096, "num_nextn_predict_layers": 0,
    "aux_loss_alpha": 0.0001,
}
TEXT = "To be, or not to be: that is the question.\n" * 8
VOCAB = 1024
SHARD = 2_000_000_000
STD = 0.02  # of matrices, so that a random model's router has preferences and no overflow comes


def write(folder: Path, gigabytes: float, experts: int = CONFIG["n_routed_experts"],
          say: Callable[[str], None] = print) -> None:
    """Write a checkpoint with so many gigabytes of routed experts, or up to a layer's more."""
    config = CONFIG | {"vocab_size": VOCAB, "n_routed_experts": experts, "num_hidden_layers": 2}
    layer = _described(config)["expert_bytes"]
    config |= {"num_hidden_layers": math.ceil(gigabytes * 1e9 / layer) + 1}
    folder.mkdir(parents=True)
    tokenizer.train_bpe([TEXT], 280).save(folder / "tokenizer.json")
    tile = np.random.default_rng(0).standard_normal(1 << 22).astype(np.float32) * STD
    draw = tile.astype(ml_dtypes.bfloat16)
    shard: dict[str, np.ndarray] = {}
    weight_map: dict[str, str] = {}
    size = total = 0

    def flush() -> None:
        nonlocal shard, size
        name = f"model-{len(set(weight_map.values())):05d}.safetensors"
        files.write_file(folder / name, shard)
        weight_map.update(dict.fromkeys(shard, name))
        shard, size = {}, 0
        say(f"{name}: {total / 1e9:.1f} GB are written")

    for i, place in enumerate(names.placements(released.read(config).model)):
        if place.name.endswith("norm.weight"):
            made = np.ones(place.shape, ml_dtypes.bfloat16)
        elif place.name.endswith("bias"):
            made = np.zeros(place.shape, np.float32)
        else:
            made = np.resize(np.roll(draw, 7919 * i), place.shape)
        shard[place.name] = made
        size, total = size + made.nbytes, total + made.nbytes
        if size > SHARD:
            flush()
    flush()
    disk.write_json(folder / files.INDEX, {"metadata": {}, "weight_map": weight_map})
    disk.write_json(folder / files.CONFIG, config)


def described(folder: Path) -> dict[str, int]:
    """Mixture layers of a checkpoint, bytes of its experts, and of those that a token visits."""
    return _described(files.read_json(folder / files.CONFIG))


def _described(config: dict[str, Any]) -> dict[str, int]:
    layers = config["num_hidden_layers"] - config["first_k_dense_replace"]
    expert = 3 * config["hidden_size"] * config["moe_intermediate_size"] * 2
    return {"layers": layers, "expert_bytes": layers * config["n_routed_experts"] * expert,
            "token_bytes": layers * config["num_experts_per_tok"] * expert}
