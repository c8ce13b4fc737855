"""A ModelConfig as the config.json that transformers, vLLM and SGLang read; `hf_config` reads it.

The rotary attributes are written in the older spelling (`rope_theta`, `rope_scaling`), which every
engine reads. A model that no released architecture describes is refused: what is written must be
the same function in transformers.
"""

from __future__ import annotations

from dsjax.config.loss import LossConfig
from dsjax.config.model import MLAConfig, ModelConfig, MoEConfig, RopeConfig
from dsjax.errors import UserError
from dsjax.released.attributes import (
    DEFAULTS,
    FAMILIES,
    INERT,
    Json,
    Reader,
    refuse_kinds,
    unaliased,
)
from dsjax.released.config import alpha_of, loss_of, rope_of

LIKE = "the config.json of the checkpoint to be like"


def write(model: ModelConfig, dtype: str, quantized: str | None = None,
          like: Json | None = None, loss: LossConfig | None = None) -> Json:
    """The released config of a model; `read` gives the model back.

    quantized: None, "float" or "ue8m0", how FP8 scales are. `like` is a config whose attributes
    that a ModelConfig has no place for (token ids, context length, model type) are kept. `loss`
    gives aux_loss_alpha, which is `like`'s otherwise.
    """
    a = model.attention
    assert isinstance(a, MLAConfig), "placements() refused this"
    _refuse(model, a)
    family = "v2" if model.moe is not None and model.moe.score == "softmax" else "v3"
    kept = unaliased(like or {}, LIKE)
    if FAMILIES.get(str(kept.get("model_type", f"deepseek_{family}"))) != family:
        raise UserError(
            f"the model is of the architecture deepseek_{family}, but the checkpoint to be like is "
            f"{str(kept['model_type'])[:60]}; give one of the same architecture"
        )
    refuse_kinds(Reader(kept, LIKE))
    made: Json = {
        "architectures": [f"Deepseek{family.upper()}ForCausalLM"],
        "model_type": f"deepseek_{family}",
        "max_position_embeddings": _context(model),
        "use_cache": True,
    }
    stale = {"dtype", "torch_dtype"}
    if _rope_of(Reader(kept, LIKE, DEFAULTS[family])) != model.rope:
        stale.add("max_position_embeddings")  # a stretched model has another context
    made |= {k: v for k, v in kept.items() if k in INERT - stale}
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
    made |= _moe_attributes(model.moe, model.mtp_depth)
    made |= _alpha(model, kept, like is not None, loss)
    if quantized:
        made["quantization_config"] = {
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "quant_method": "fp8",
            "weight_block_size": [128, 128],
        } | ({"scale_fmt": "ue8m0"} if quantized == "ue8m0" else {})
    return dict(sorted(made.items()))


def _rope_of(r: Reader) -> RopeConfig:
    try:
        return rope_of(r)
    except UserError:
        raise
    except ValueError as error:
        raise r.wrong(f"describes no frequencies ({error})") from None


def _refuse(model: ModelConfig, a: MLAConfig) -> None:
    """Refuse what released code cannot compute, whatever config it is given."""
    moe, y = model.moe, model.rope.yarn
    if a.latent_norm_eps != 1e-6:
        raise _formless(f"latent_norm_eps={a.latent_norm_eps}",
                        "released code norms the latents with 1e-06, whatever the config says")
    if y and (not y.mscale or (not y.mscale_all_dim and y.mscale != 1.0)):
        raise _formless(f"YaRN with mscale={y.mscale} and mscale_all_dim={y.mscale_all_dim}",
                        "transformers takes both for missing, which means 1 and 0")
    if y and not (y.beta_fast and y.beta_slow):
        raise _formless("a YaRN beta of 0", "transformers takes it for missing")
    if model.mtp_depth and (moe is None or moe.score == "softmax"):
        what = "moe=None" if moe is None else "a softmax router"
        raise _formless(f"{what} with mtp_depth={model.mtp_depth}",
                        "only models with sigmoid routers have MTP modules; set mtp_depth=0 and "
                        "leave them out")
    if moe is not None:
        _refuse_mixture(model, moe, a)


def _refuse_mixture(model: ModelConfig, moe: MoEConfig, a: MLAConfig) -> None:
    """Refuse mixtures that no released architecture has."""
    if moe.capacity_factor is not None:
        raise _formless(f"capacity_factor={moe.capacity_factor}",
                        "released models drop no token; write dsjax.config.model.dropless(cfg)")
    if not moe.shared_experts:
        raise _formless("shared_experts=0", "every mixture has shared experts")
    if moe.score == "sigmoid" and moe.experts < 2:
        raise _formless("a sigmoid router of 1 expert", "groups are ranked by their best two")
    if moe.score == "softmax" and model.d_model % a.heads:
        raise _formless(f"a softmax router with d_model={model.d_model} and heads={a.heads}",
                        "transformers wants the one to be a multiple of the other in deepseek_v2")
    is_v3 = moe.score == "sigmoid"
    forms = {
        "has_bias": (moe.has_bias, is_v3),
        "group_score": (moe.group_score, "top2" if is_v3 else "max"),
        "is_normalized": (moe.is_normalized, moe.is_normalized if is_v3 else False),
    }
    for name, (value, released) in forms.items():
        if value != released and not (name == "group_score" and moe.groups == 1):
            raise _formless(f"a {moe.score} router with {name}={value!r}",
                            f"released models with score={moe.score!r} have {name}={released!r}")


def _formless(what: str, why: str) -> UserError:
    return UserError(f"{what} has no released form; {why}")


def _context(model: ModelConfig) -> int:
    """Positions a model is made for, as far as its rotary frequencies tell."""
    yarn = model.rope.yarn
    return round(yarn.factor * yarn.original_length) if yarn else 4096


def _alpha(model: ModelConfig, kept: Json, is_like: bool, loss: LossConfig | None) -> Json:
    """The weight of the balance loss; where the model's source named none and means it, none."""
    stated: Json = {k: kept[k] for k in ("aux_loss_alpha", "seq_aux") if k in kept}
    if loss is None or model.moe is None:
        return stated
    name = alpha_of(model)
    means = loss_of(Reader({}, "", {"seq_aux": True}), model)[0]
    if is_like and "aux_loss_alpha" not in stated and getattr(loss, name) == getattr(means, name):
        return stated
    return stated | {"aux_loss_alpha": getattr(loss, name), "seq_aux": True}


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


def _moe_attributes(moe: MoEConfig | None, mtp_depth: int) -> Json:
    """What describes the experts."""
    if moe is None:
        # Read back as no mixture; transformers makes dense layers of all and never an expert.
        return {"n_routed_experts": 1, "num_experts_per_tok": 1, "moe_intermediate_size": 1,
                "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "topk_method": "noaux_tc",
                "scoring_func": "sigmoid", "norm_topk_prob": True, "routed_scaling_factor": 1.0,
                "moe_layer_freq": 1, "num_nextn_predict_layers": 0}
    is_v3 = moe.score == "sigmoid"
    is_grouped = moe.groups > 1
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
        "num_nextn_predict_layers": mtp_depth,
    }
