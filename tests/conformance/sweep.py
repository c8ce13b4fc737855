"""Small random models of every released form, as released checkpoints, from seeds alone.

Weights come from NumPy's frozen legacy generator, so that the golden arrays
(tests/golden/make_hf.py) belong to the same models on every machine. Sizes are odd where they may
be: mixed-up dims fail.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dsjax import disk
from dsjax.released import config as hf_config
from dsjax.released import files
from dsjax.released.names import Placement, placements

YARN = {"type": "yarn", "factor": 40, "original_max_position_embeddings": 16, "beta_fast": 32,
        "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0}
SIZES = {"vocab_size": 89, "hidden_size": 40, "intermediate_size": 52, "num_attention_heads": 5,
         "num_key_value_heads": 5, "kv_lora_rank": 14, "q_lora_rank": 22, "qk_nope_head_dim": 10,
         "qk_rope_head_dim": 8, "v_head_dim": 6, "num_hidden_layers": 3,
         "max_position_embeddings": 640, "bos_token_id": 0, "eos_token_id": None,
         "rope_theta": 10000.0, "rms_norm_eps": 1e-6, "hidden_act": "silu",
         "tie_word_embeddings": False, "attention_bias": False}
V3 = SIZES | {
    "model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"],
    "scoring_func": "sigmoid", "topk_method": "noaux_tc", "norm_topk_prob": True,
    "n_routed_experts": 12, "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2,
    "moe_intermediate_size": 18, "n_shared_experts": 1, "routed_scaling_factor": 2.5,
    "first_k_dense_replace": 1, "moe_layer_freq": 1, "num_nextn_predict_layers": 0,
    "aux_loss_alpha": 0.0001,
}
V2 = SIZES | {
    "model_type": "deepseek_v2", "architectures": ["DeepseekV2ForCausalLM"],
    "scoring_func": "softmax", "topk_method": "greedy", "norm_topk_prob": False,
    "n_routed_experts": 12, "num_experts_per_tok": 3, "n_group": 1, "topk_group": 1,
    "moe_intermediate_size": 18, "n_shared_experts": 2, "routed_scaling_factor": 1.0,
    "first_k_dense_replace": 1, "moe_layer_freq": 1, "aux_loss_alpha": 0.001,
}
GROUPED = {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2,
           "routed_scaling_factor": 16.0}

CONFIGS: dict[str, dict[str, Any]] = {
    "v3": V3,
    "v3_no_q_rank": V3 | {"q_lora_rank": None},
    "v3_yarn": V3 | {"rope_scaling": YARN},
    "v3_yarn_mscale": V3 | {"rope_scaling": YARN | {"mscale": 0.7, "mscale_all_dim": 1.3}},
    "v3_yarn_bare": V3 | {"rope_scaling": YARN | {"mscale": None, "mscale_all_dim": None}},
    "v3_two_dense_no_norm": V3 | {"first_k_dense_replace": 2, "norm_topk_prob": False},
    "v3_three_dense": V3 | {"first_k_dense_replace": 3, "num_hidden_layers": 5},
    "v3_mtp": V3 | {"num_nextn_predict_layers": 1, "rope_scaling": YARN},
    "v3_mtp_twice": V3 | {"num_nextn_predict_layers": 2, "q_lora_rank": None},
    "moonlight": V3 | {"q_lora_rank": None, "n_group": 1, "topk_group": 1, "n_shared_experts": 2,
                       "routed_scaling_factor": 2.446, "rope_theta": 50000.0},
    "kimi": V3 | {"n_group": 1, "topk_group": 1, "routed_scaling_factor": 2.827,
                  "rope_theta": 50000.0,
                  "rope_scaling": YARN | {"beta_fast": 1, "beta_slow": 1, "factor": 32}},
    "v2_lite": V2 | {"q_lora_rank": None,
                     "rope_scaling": YARN | {"mscale": 0.707, "mscale_all_dim": 0.707}},
    "v2": V2 | GROUPED | {"rope_scaling": YARN},
    "v2_no_yarn": V2 | GROUPED | {"first_k_dense_replace": 2},
    "v2_all_experts": V2 | {"first_k_dense_replace": 0},
}


def weights(config: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
    """Random float32 tensors of a released model, sized so that activations stay near 1."""
    draw = np.random.RandomState(seed)
    made: dict[str, np.ndarray] = {}
    for place in placements(hf_config.read(config).model):
        if place.copy_of is not None:
            continue
        made[place.name] = _tensor(place, draw).astype(np.float32)
    for place in placements(hf_config.read(config).model):
        if place.copy_of is not None:
            made[place.name] = made[place.copy_of]
    return made


def _tensor(place: Placement, draw: np.random.RandomState) -> np.ndarray:
    noise = draw.standard_normal(place.shape)
    if place.name.endswith("e_score_correction_bias"):
        return 0.3 * noise
    if len(place.shape) == 1:
        return 1 + 0.2 * noise
    if place.name.endswith("embed_tokens.weight"):
        return noise
    return noise * (1.5 / np.sqrt(place.shape[1]))


def checkpoint(folder: Path, config: dict[str, Any], tensors: dict[str, np.ndarray]) -> Path:
    """Write a released checkpoint in one file."""
    folder.mkdir(parents=True)
    disk.write_json(folder / "config.json", config)
    files.write_file(folder / "model.safetensors", tensors)
    return folder


def tokens(seed: int, vocab: int, rows: int = 2, length: int = 23) -> np.ndarray:
    """Random tokens [rows, length] int32."""
    return np.random.RandomState(1000 + seed).randint(0, vocab, (rows, length)).astype(np.int32)
