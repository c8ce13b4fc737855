"""A released config.json as a ModelConfig and back: every attribute understood, or an error.

An attribute is read (`SIZES`, router, rotary, losses), may only have the value that released models
have (`FIXED`), or changes no number (`INERT`). Anything else is refused by name: a model that needs
it would be loaded as another one. Both spellings of the rotary attributes are read, `rope_theta`
with `rope_scaling`, and transformers' newer `rope_parameters`; the first is written, for every
engine reads it.

Two attributes are leftovers in released files. `initializer_range` (0.02; the V3 report trains from
0.006) is read as it stands. `aux_loss_alpha` too, and a missing one is not zero: see `loss_of`.
`rms_norm_eps` is of every norm but the latents', which have 1e-6: see `MLAConfig.latent_norm_eps`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from dsjax.config.fields import did_you_mean
from dsjax.config.loss import LossConfig
from dsjax.config.model import MLAConfig, ModelConfig, MoEConfig, RopeConfig, YarnConfig
from dsjax.errors import UserError

Json = dict[str, Any]

FAMILIES = {
    "deepseek_v2": ("softmax", "greedy"),
    "deepseek_v3": ("sigmoid", "noaux_tc"),
    "kimi_k2": ("sigmoid", "noaux_tc"),
}
"""Model types, and the score and choice that a config of that type means when it names none."""

FIXED: Json = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "attention_dropout": 0.0,
    "tie_word_embeddings": False,
    "moe_layer_freq": 1,
    "rope_interleave": True,
    "partial_rotary_factor": 1.0,
}
"""Attributes that may be missing or None, or have this value."""

INERT = {
    "architectures", "auto_map", "model_type", "transformers_version", "torch_dtype", "dtype",
    "use_cache", "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id",
    "decoder_start_token_id", "max_position_embeddings", "pretraining_tp", "ep_size",
    "_name_or_path", "output_router_logits", "router_aux_loss_coef", "output_attentions",
    "output_hidden_states",
    "return_dict", "chunk_size_feed_forward", "is_encoder_decoder", "id2label", "label2id",
    "problem_type", "tokenizer_class", "task_specific_params", "prefix", "torchscript",
    "_attn_implementation", "is_decoder", "cross_attention_hidden_size", "add_cross_attention",
    "tie_encoder_decoder", "finetuning_task", "_commit_hash",
}  # fmt: skip
"""Attributes that say nothing about the function of tokens."""

ALIASES = {
    "num_mtp_layers": "num_nextn_predict_layers",
    "num_experts": "n_routed_experts",
    "num_local_experts": "n_routed_experts",
}
READ = {
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim",
    "v_head_dim", "head_dim", "qk_head_dim", "rms_norm_eps", "initializer_range",
    "n_routed_experts", "n_shared_experts", "num_experts_per_tok", "moe_intermediate_size",
    "first_k_dense_replace", "n_group", "topk_group", "topk_method", "scoring_func",
    "norm_topk_prob", "routed_scaling_factor", "num_nextn_predict_layers", "aux_loss_alpha",
    "seq_aux", "rope_theta", "rope_scaling", "rope_parameters", "quantization_config",
}  # fmt: skip


@dataclass(frozen=True)
class Released:
    """What a config.json says."""

    model: ModelConfig
    loss: LossConfig
    remarks: tuple[str, ...]
    """Sentences about what was assumed."""
    is_fp8: bool
    is_pow2: bool
    """Whether scales are powers of two (UE8M0, V3.1)."""


class _Reader:
    """The attributes of one file, each asked for by name."""

    def __init__(self, data: Json, where: str) -> None:
        self.data, self.where = data, where

    def get(self, name: str, default: Any = None) -> Any:
        value = self.data.get(name)
        return default if value is None else value

    def need(self, name: str) -> Any:
        if self.get(name) is None:
            raise self.wrong(f"lacks {name!r}; add it")
        return self.data[name]

    def size(self, name: str) -> int:
        value = self.need(name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise self.wrong(f"has {name}={value!r}, which is not a count; correct it")
        return value

    def wrong(self, what: str) -> UserError:
        return UserError(f"{self.where} {what}")


def read(data: Json, where: str = "config.json") -> Released:
    """Understand a released config; `where` names it in errors."""
    r = _Reader(unaliased(data, where), where)
    family = r.need("model_type")
    if family not in FAMILIES:
        raise r.wrong(f"is of model_type {family!r}; dsjax reads {', '.join(FAMILIES)}")
    _refuse_unknown(r)
    is_fp8, is_pow2 = _quantization(r)
    layers, moe = r.size("num_hidden_layers"), _moe(r, family)
    try:
        model = ModelConfig(
            vocab=r.size("vocab_size"),
            d_model=r.size("hidden_size"),
            layers=layers,
            dense_layers=min(r.get("first_k_dense_replace", 0), layers) if moe else layers,
            dense_dim=r.size("intermediate_size"),
            attention=_attention(r),
            moe=moe,
            mtp_depth=r.get("num_nextn_predict_layers", 0),
            rope=_rope(r),
            norm_eps=float(r.get("rms_norm_eps", 1e-6)),
            init_std=float(r.get("initializer_range", 0.006)),
        )
    except UserError:
        raise
    except (ValueError, TypeError) as error:
        raise r.wrong(f"describes no model ({error})") from None
    loss, remark = loss_of(r.data, model)
    return Released(model, loss, (remark,) if remark else (), is_fp8, is_pow2)


def unaliased(data: Json, where: str) -> Json:
    """Call every attribute by one name."""
    made: Json = {}
    for name, value in data.items():
        known = ALIASES.get(name, name)
        if made.get(known, value) != value:
            raise UserError(
                f"{where} says {known}={made[known]!r} and {name}={value!r}; remove one of them"
            )
        made[known] = value
    return made


def _refuse_unknown(r: _Reader) -> None:
    for name, value in r.data.items():
        if name in FIXED:
            if value is not None and value != FIXED[name]:
                raise r.wrong(f"has {name}={value!r}; dsjax computes {name}={FIXED[name]!r} only")
        elif name not in READ and name not in INERT and value is not None:
            mean = did_you_mean(name, READ)
            raise r.wrong(
                f"has the attribute {name}={str(value)[:60]!r}, which dsjax does not know{mean}; "
                "remove it if it does not change the model"
            )


def _attention(r: _Reader) -> MLAConfig:
    """Sizes of latent attention; the derived ones that transformers writes must agree."""
    heads, nope, rope = (
        r.size(n) for n in ("num_attention_heads", "qk_nope_head_dim", "qk_rope_head_dim")
    )
    derived = {"num_key_value_heads": heads, "head_dim": rope, "qk_head_dim": nope + rope}
    for name, value in derived.items():
        if r.get(name, value) != value:
            raise r.wrong(f"has {name}={r.data[name]}, but latent attention here means {value}")
    return MLAConfig(
        heads=heads,
        kv_rank=r.size("kv_lora_rank"),
        nope_dim=nope,
        rope_dim=rope,
        value_dim=r.size("v_head_dim"),
        q_rank=r.get("q_lora_rank"),
    )


def _moe(r: _Reader, family: str) -> MoEConfig | None:
    """Experts and their choice; None when every layer is dense."""
    layers = r.size("num_hidden_layers")
    is_dense = r.get("first_k_dense_replace", 0) >= layers and not r.get("num_nextn_predict_layers")
    if r.get("n_routed_experts") is None or is_dense:
        return None
    score, method = FAMILIES[family]
    score, method = r.get("scoring_func", score), r.get("topk_method", method)
    is_normalized = bool(r.get("norm_topk_prob", score == "sigmoid"))
    choices = {("sigmoid", "noaux_tc"), ("softmax", "greedy"), ("softmax", "group_limited_greedy")}
    if (score, method) not in choices:
        raise r.wrong(
            f"has scoring_func={score!r} with topk_method={method!r}; released models pair sigmoid "
            "with noaux_tc and softmax with greedy or group_limited_greedy"
        )
    if score == "softmax" and is_normalized:
        raise r.wrong(
            "has norm_topk_prob=True with scoring_func='softmax', which DeepSeek's code normalizes "
            "and does not scale and transformers ignores; no released model has it, set it to False"
        )
    is_grouped = method != "greedy"
    try:
        return MoEConfig(
            experts=r.size("n_routed_experts"),
            experts_per_token=r.size("num_experts_per_tok"),
            expert_dim=r.size("moe_intermediate_size"),
            shared_experts=r.get("n_shared_experts", 0),
            score=score,
            groups=r.get("n_group", 1) if is_grouped else 1,
            groups_per_token=r.get("topk_group", 1) if is_grouped else 1,
            group_score="top2" if method == "noaux_tc" else "max",
            is_normalized=is_normalized,
            scale=float(r.get("routed_scaling_factor", 1.0)),
            has_bias=method == "noaux_tc",
        )
    except (ValueError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        raise r.wrong(f"describes no mixture ({error})") from None


def _rope(r: _Reader) -> RopeConfig:
    """Frequencies from either spelling; both must agree where both are there."""
    scaling, newer = dict(r.get("rope_scaling", {})), dict(r.get("rope_parameters", {}))
    theta = newer.pop("rope_theta", None)
    legacy_theta = r.get("rope_theta")
    if None not in (theta, legacy_theta) and float(theta) != float(legacy_theta):
        raise r.wrong(f"says rope_theta={legacy_theta} and, in rope_parameters, {theta}")
    kind, yarn = _yarn(newer, r) if newer else ("default", None)
    if scaling:
        older = _yarn({k: v for k, v in scaling.items() if k != "rope_theta"}, r)
        if newer and older != (kind, yarn):
            raise r.wrong("has rope_scaling and rope_parameters that differ; remove one of them")
        kind, yarn = older
    base = next((t for t in (theta, legacy_theta) if t is not None), 10000.0)
    return RopeConfig(theta=float(base), yarn=yarn)


def _yarn(given: Json, r: _Reader) -> tuple[str, YarnConfig | None]:
    """A kind of scaling and its numbers; only YaRN and none are in released models."""
    given = {k: v for k, v in given.items() if v is not None}
    kind = given.pop("rope_type", given.pop("type", "default"))
    given.pop("type", None)
    if given.pop("partial_rotary_factor", 1.0) != 1.0 or kind not in ("default", "yarn"):
        raise r.wrong(f"scales rotary frequencies by {kind!r}; dsjax has 'yarn' and 'default'")
    if kind == "default":
        if given:
            raise r.wrong(f"gives {sorted(given)} to rotary frequencies of the type 'default'")
        return kind, None
    known = {"factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "mscale",
             "mscale_all_dim", "truncate"}
    for name in given:
        if name not in known or (name == "truncate" and not given[name]):
            raise r.wrong(f"has {name}={given[name]!r} for YaRN, which dsjax does not compute")
    for name in ("factor", "original_max_position_embeddings"):
        if name not in given:
            raise r.wrong(f"has YaRN without {name!r}; add it")
    mscale, all_dim = given.get("mscale"), given.get("mscale_all_dim")
    if (mscale or 0) != 0 and not all_dim and mscale != 1.0:
        raise r.wrong(
            f"has YaRN's mscale={mscale} without mscale_all_dim, which DeepSeek's code and "
            "transformers read differently; give both"
        )
    if all_dim and not mscale:
        raise r.wrong(f"has YaRN's mscale_all_dim={all_dim} without mscale; give both")
    return kind, YarnConfig(
        factor=float(given["factor"]),
        original_length=given["original_max_position_embeddings"],
        beta_fast=float(given.get("beta_fast", 32.0)),
        beta_slow=float(given.get("beta_slow", 1.0)),
        mscale=float(mscale or 1.0),
        mscale_all_dim=float(all_dim or 0.0),
    )


def _quantization(r: _Reader) -> tuple[bool, bool]:
    """Whether matrices are FP8, and whether their scales are powers of two."""
    given = dict(r.get("quantization_config", {}))
    if not given:
        return False, False
    expected = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128],
                "activation_scheme": "dynamic"}
    for name, value in expected.items():
        if given.pop(name, value) != value:
            found = r.data["quantization_config"][name]
            raise r.wrong(f"is quantized with {name}={found!r}; dsjax reads {value!r} only")
    form = given.pop("scale_fmt", None)
    if form not in (None, "float", "ue8m0"):
        raise r.wrong(f"is quantized with scale_fmt={form!r}; dsjax reads 'ue8m0' and none")
    given.pop("modules_to_not_convert", None)  # each tensor's dtype says so itself
    if any(v is not None for v in given.values()):
        raise r.wrong(f"is quantized with {sorted(given)}, which dsjax does not know")
    return True, form == "ue8m0"


def loss_of(data: Json, model: ModelConfig) -> tuple[LossConfig, str | None]:
    """The balance losses to go on training with, and a sentence where the config names none.

    `aux_loss_alpha` weighs V3's sequence-wise loss, or V2's expert-level loss. Missing, as in V3's
    released config, it is the report's: 1e-4 (V3 sec. 4.2); 0.003, 0.05 and 0.02 (V2 sec. 3.1.2);
    0.001 (V2-Lite, App. B).
    """
    if model.moe is None:
        return LossConfig(balance=0.0), None
    alpha, is_v3 = data.get("aux_loss_alpha"), model.moe.score == "sigmoid"
    kept = LossConfig()
    if is_v3:
        weights = {"balance": kept.balance if alpha is None else float(alpha)}
        used = f"{kept.balance:g}, the V3 report's"
    elif model.moe.groups > 1:
        weights = {"balance": 0.0, "expert_balance": 0.003 if alpha is None else float(alpha),
                   "device_balance": 0.05, "communication_balance": 0.02}
        used = "0.003, with 0.05 and 0.02 for devices and communication, the V2 report's"
    else:
        weights = {"balance": 0.0, "expert_balance": 0.001 if alpha is None else float(alpha)}
        used = "0.001, the V2 report's for V2-Lite"
    if alpha is not None:
        return dataclasses.replace(kept, **weights), None
    remark = f"aux_loss_alpha is not in the config: training would go on with {used}"
    return dataclasses.replace(kept, **weights), remark
