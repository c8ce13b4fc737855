"""A ModelConfig as the config.json that transformers, vLLM and SGLang read; `hf_config` reads it.

The rotary attributes are written in the older spelling (`rope_theta`, `rope_scaling`), which every
engine reads. A model that no released architecture describes is refused.
"""

from __future__ import annotations

from dsjax.checkpoint.hf_config import INERT, Json, unaliased
from dsjax.config.model import MLAConfig, ModelConfig, RopeConfig
from dsjax.errors import UserError


def write(model: ModelConfig, dtype: str, quantized: str | None = None,
          like: Json | None = None) -> Json:
    """The released config of a model; `read` gives the model back.

    quantized: None, "float" or "ue8m0", how FP8 scales are. `like` is a config whose attributes
    that a ModelConfig has no place for (token ids, context length, model type) are kept.
    """
    a, moe = model.attention, model.moe
    assert isinstance(a, MLAConfig), "placements() refused this"
    if a.latent_norm_eps != 1e-6:
        raise UserError(
            f"latent_norm_eps={a.latent_norm_eps} has no released form; released code norms the "
            "latents with 1e-06, whatever the config says"
        )
    is_v2 = moe is not None and moe.score == "softmax"
    made: Json = {
        "architectures": [f"Deepseek{'V2' if is_v2 else 'V3'}ForCausalLM"],
        "model_type": "deepseek_v2" if is_v2 else "deepseek_v3",
        "max_position_embeddings": _context(model),
        "use_cache": True,
    }
    made |= {k: v for k, v in unaliased(like or {}, "config.json").items() if k in INERT}
    for name in ("dtype", "torch_dtype"):
        made.pop(name, None)
    made |= {
        "torch_dtype": dtype,
        "vocab_size": model.vocab,
        "hidden_size": model.d_model,
        "intermediate_size": model.dense_dim,
        "num_hidden_layers": model.layers,
        "num_attention_heads": a.heads,
        "num_key_value_heads": a.heads,
        "q_lora_rank": a.q_rank,
        "kv_lora_rank": a.kv_rank,
        "qk_nope_head_dim": a.nope_dim,
        "qk_rope_head_dim": a.rope_dim,
        "v_head_dim": a.value_dim,
        "rms_norm_eps": model.norm_eps,
        "initializer_range": model.init_std,
        "first_k_dense_replace": model.dense_layers,
        "rope_theta": model.rope.theta,
        "rope_scaling": _rope_scaling(model.rope),
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": False,
    }
    made |= _moe_attributes(model)
    made |= {k: like[k] for k in ("aux_loss_alpha", "seq_aux") if like and k in like}
    if quantized:
        made["quantization_config"] = {
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "quant_method": "fp8",
            "weight_block_size": [128, 128],
        } | ({"scale_fmt": "ue8m0"} if quantized == "ue8m0" else {})
    return dict(sorted(made.items()))


def _context(model: ModelConfig) -> int:
    """Positions a model is made for, as far as its rotary frequencies tell."""
    yarn = model.rope.yarn
    return round(yarn.factor * yarn.original_length) if yarn else 4096


def _rope_scaling(rope: RopeConfig) -> Json | None:
    y = rope.yarn
    if y is None:
        return None
    return {
        "type": "yarn",
        "factor": y.factor,
        "original_max_position_embeddings": y.original_length,
        "beta_fast": y.beta_fast,
        "beta_slow": y.beta_slow,
        "mscale": y.mscale,
        "mscale_all_dim": y.mscale_all_dim,
    }


def _moe_attributes(model: ModelConfig) -> Json:
    """What describes the experts; refuses mixtures that no released architecture has."""
    moe = model.moe
    if moe is None:
        if model.mtp_depth:
            raise UserError(
                f"moe=None with mtp_depth={model.mtp_depth} has no released form: MTP modules are "
                "mixtures there; export without them or give the model experts"
            )
        # Read back as no mixture; transformers makes dense layers of all and never an expert.
        return {"n_routed_experts": 1, "num_experts_per_tok": 1, "moe_intermediate_size": 1,
                "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "topk_method": "noaux_tc",
                "scoring_func": "sigmoid", "norm_topk_prob": True, "routed_scaling_factor": 1.0,
                "moe_layer_freq": 1, "num_nextn_predict_layers": 0}
    is_v3 = moe.score == "sigmoid"
    is_grouped = moe.groups > 1
    forms = {
        "has_bias": (moe.has_bias, is_v3),
        "group_score": (moe.group_score, "top2" if is_v3 else "max"),
        "is_normalized": (moe.is_normalized, moe.is_normalized if is_v3 else False),
    }
    for name, (value, released) in forms.items():
        if value != released and not (name == "group_score" and not is_grouped):
            raise UserError(
                f"a {moe.score} router with {name}={value!r} has no released form; released models "
                f"with score={moe.score!r} have {name}={released!r}"
            )
    method = "noaux_tc" if is_v3 else "group_limited_greedy" if is_grouped else "greedy"
    return {
        "n_routed_experts": moe.experts,
        "n_shared_experts": moe.shared_experts,
        "num_experts_per_tok": moe.experts_per_token,
        "moe_intermediate_size": moe.expert_dim,
        "moe_layer_freq": 1,
        "n_group": moe.groups,
        "topk_group": moe.groups_per_token,
        "topk_method": method,
        "scoring_func": moe.score,
        "norm_topk_prob": moe.is_normalized,
        "routed_scaling_factor": moe.scale,
        "num_nextn_predict_layers": model.mtp_depth,
    }
