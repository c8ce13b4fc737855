"""A released config.json as a ModelConfig: every attribute understood, or an error.

What there is to understand, and what a missing attribute means, is listed in `hf_attributes`. Both
spellings of the rotary attributes are read, `rope_theta` with `rope_scaling`, and transformers'
newer `rope_parameters`; they must agree where both are there.

Two attributes are leftovers in released files. `initializer_range` (0.02; the V3 report trains from
0.006) is read as it stands. `aux_loss_alpha` too, and a missing one is not zero: see `loss_of`.
`rms_norm_eps` is of every norm but the latents', which have 1e-6: see `MLAConfig.latent_norm_eps`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from dsjax.config.loss import LossConfig
from dsjax.config.model import MLAConfig, ModelConfig, MoEConfig, RopeConfig, YarnConfig
from dsjax.errors import UserError
from dsjax.released.attributes import (
    DEFAULTS,
    FAMILIES,
    OPEN,
    ROUTERS,
    Json,
    Reader,
    refuse_unknown,
    unaliased,
)


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


def read(data: Json, where: str = "config.json") -> Released:
    """Understand a released config; `where` names it in errors."""
    if "model_type" not in data and "train" in data:
        raise UserError(
            f"{where} is of a run that dsjax made; convert it with `dsjax convert dsjax-to-hf`, "
            "or give the folder of a released checkpoint"
        )
    r = Reader(unaliased(data, where), where)
    kind = r.word("model_type")
    if kind not in FAMILIES:
        raise r.wrong(f"is of model_type {kind[:60]!r}; dsjax reads {', '.join(FAMILIES)}; "
                      "give a checkpoint of one of these")
    family = FAMILIES[kind]
    r.defaults = DEFAULTS[family]
    refuse_unknown(r)
    is_fp8, is_pow2 = _quantization(r)
    try:
        model = _model(r, family)
        loss, remark = loss_of(r, model)
    except UserError:
        raise
    except (ValueError, TypeError) as error:
        raise r.wrong(f"describes no model ({error}); correct it") from None
    remarks = tuple(text for text in (_assumed(r), remark) if text)
    return Released(model, loss, remarks, is_fp8, is_pow2)


def _assumed(r: Reader) -> str | None:
    """A sentence about attributes whose absence engines read differently."""
    taken = {name: r.assumed[name] for name in OPEN if name in r.assumed}
    if not taken:
        return None
    names = ", ".join(f"{name}={value}" for name, value in taken.items())
    return f"not in the config: {names}, the defaults of transformers, are used"


def _model(r: Reader, family: str) -> ModelConfig:
    """Sizes of the model, and what its layers are."""
    layers = r.count("num_hidden_layers", 1)
    mtp = r.count("num_nextn_predict_layers")
    if mtp and family == "v2":
        raise r.wrong(
            f"has num_nextn_predict_layers={mtp}, but {r.word('model_type')} has no MTP modules in "
            "any engine; set it to 0"
        )
    # DeepSeek's code makes every layer dense where the experts are null.
    is_dense = r.is_null("n_routed_experts")
    first = layers if is_dense else min(r.count("first_k_dense_replace"), layers)
    is_dense |= first == layers and not mtp
    return ModelConfig(
        vocab=r.count("vocab_size", 1),
        d_model=r.count("hidden_size", 1),
        layers=layers,
        dense_layers=first,
        dense_dim=r.count("intermediate_size", 1),
        attention=_attention(r),
        moe=None if is_dense else _moe(r, family),
        mtp_depth=mtp,
        rope=rope_of(r),
        norm_eps=r.number("rms_norm_eps"),
        init_std=r.number("initializer_range"),
    )


def _attention(r: Reader) -> MLAConfig:
    """Sizes of latent attention; the derived ones that transformers writes must agree."""
    heads, nope, rope = (
        r.count(n, 1) for n in ("num_attention_heads", "qk_nope_head_dim", "qk_rope_head_dim")
    )
    derived = {"num_key_value_heads": heads, "head_dim": rope, "qk_head_dim": nope + rope}
    for name, value in derived.items():
        if r.has(name) and r.count(name) != value:
            raise r.wrong(f"has {name}={str(r.data[name])[:60]}, but latent attention here means "
                          f"{value}; correct one of them")
    return MLAConfig(
        heads=heads,
        kv_rank=r.count("kv_lora_rank", 1),
        nope_dim=nope,
        rope_dim=rope,
        value_dim=r.count("v_head_dim", 1),
        q_rank=None if r.is_null("q_lora_rank") else r.count("q_lora_rank", 1),
    )


def _moe(r: Reader, family: str) -> MoEConfig:
    """Experts and their choice."""
    score, method = r.word("scoring_func"), r.word("topk_method")
    released, methods = ROUTERS[family]
    if score != released or method not in methods:
        raise r.wrong(
            f"has scoring_func={score!r} with topk_method={method!r}; a {r.word('model_type')} "
            f"model pairs {released} with {' or '.join(methods)}, whatever its config says"
        )
    is_normalized = r.flag("norm_topk_prob")
    if score == "softmax" and is_normalized:
        raise r.wrong(
            "has norm_topk_prob=True with scoring_func='softmax', which DeepSeek's code normalizes "
            "and does not scale and transformers ignores; no released model has it, set it to False"
        )
    is_grouped = method != "greedy"
    return MoEConfig(
        experts=r.count("n_routed_experts", 1),
        experts_per_token=r.count("num_experts_per_tok", 1),
        expert_dim=r.count("moe_intermediate_size", 1),
        shared_experts=0 if r.is_null("n_shared_experts") else r.count("n_shared_experts"),
        score="sigmoid" if family == "v3" else "softmax",
        groups=r.count("n_group", 1) if is_grouped else 1,
        groups_per_token=r.count("topk_group", 1) if is_grouped else 1,
        group_score="top2" if method == "noaux_tc" else "max",
        is_normalized=is_normalized,
        scale=r.number("routed_scaling_factor"),
        has_bias=method == "noaux_tc",
    )


def rope_of(r: Reader) -> RopeConfig:
    """Frequencies from either spelling; both must agree where both are there."""
    older, newer = r.nested("rope_scaling"), r.nested("rope_parameters")
    thetas = {
        place: reader.number("rope_theta")
        for place, reader in (("", r), ("rope_scaling", older), ("rope_parameters", newer))
        if reader.has("rope_theta")
    }
    if len(set(thetas.values())) > 1:
        said = " and ".join(f"{v:g}{f', in {k},' if k else ''}" for k, v in thetas.items())
        raise r.wrong(f"says rope_theta={said}; remove one of them")
    made = [_yarn(given) for given in (older, newer) if given.data.keys() - {"rope_theta"}]
    if len(set(made)) > 1:
        raise r.wrong("has rope_scaling and rope_parameters that differ; remove one of them")
    theta = next(iter(thetas.values()), r.defaults["rope_theta"])
    return RopeConfig(theta=theta, yarn=made[0] if made else None)


YARN: Json = {"beta_fast": 32.0, "beta_slow": 1.0}
YARN_NAMES = {"factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "mscale",
              "mscale_all_dim", "truncate"}


def _yarn(r: Reader) -> YarnConfig | None:
    """The numbers of one scaling; only YaRN and none are in released models."""
    r.data = {k: v for k, v in r.data.items() if v is not None and k != "rope_theta"}
    r.defaults = YARN | {"type": "default"}
    kind = r.word("rope_type" if "rope_type" in r.data else "type")
    names = {k: v for k, v in r.data.items() if k not in ("rope_type", "type")}
    if r.data.get("type", kind) != kind:
        raise r.wrong(f"says type={str(r.data['type'])[:60]!r} and rope_type={kind!r}; "
                      "remove one of them")
    if names.pop("partial_rotary_factor", 1.0) != 1.0 or kind not in ("default", "yarn"):
        raise r.wrong(f"scales rotary frequencies by {kind[:60]!r}; dsjax has 'yarn' and 'default'")
    if kind == "default":
        if names:
            raise r.wrong(f"gives {str(sorted(names))[:100]} to rotary frequencies of the type "
                          "'default'; remove them")
        return None
    for name, value in names.items():
        if name not in YARN_NAMES or (name == "truncate" and value is not True):
            raise r.wrong(f"has {name[:60]}={str(value)[:60]!r} for YaRN, which dsjax does not "
                          "compute; remove it if it does not change the model")
    mscale, all_dim = _mscales(r)
    fast, slow = r.number("beta_fast", 0), r.number("beta_slow", 0)
    if not fast or not slow:
        raise r.wrong("has a YaRN beta of 0, which transformers reads as missing; remove it")
    return YarnConfig(
        factor=r.number("factor"),
        original_length=r.count("original_max_position_embeddings", 1),
        beta_fast=fast,
        beta_slow=slow,
        mscale=mscale,
        mscale_all_dim=all_dim,
    )


def _mscales(r: Reader) -> tuple[float, float]:
    """YaRN's mscale and mscale_all_dim, where DeepSeek's code and transformers mean the same."""
    mscale = r.number("mscale") if r.has("mscale") else None
    all_dim = r.number("mscale_all_dim") if r.has("mscale_all_dim") else None
    if all_dim and not mscale:
        raise r.wrong(f"has YaRN's mscale_all_dim={all_dim:g} without mscale; give both")
    if not all_dim and mscale not in (None, 1.0):
        raise r.wrong(
            f"has YaRN's mscale={mscale:g} without mscale_all_dim, which DeepSeek's code and "
            "transformers read differently; give both"
        )
    return (1.0 if mscale is None else mscale), all_dim or 0.0


def _quantization(r: Reader) -> tuple[bool, bool]:
    """Whether matrices are FP8, and whether their scales are powers of two."""
    given = dict(r.nested("quantization_config").data)
    if not given:
        return False, False
    expected = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128],
                "activation_scheme": "dynamic"}
    for name, value in expected.items():
        if (found := given.pop(name, value)) != value:
            raise r.wrong(f"is quantized with {name}={str(found)[:60]!r}; dsjax reads {value!r} "
                          "only")
    form = given.pop("scale_fmt", None)
    if form not in (None, "float", "ue8m0"):
        raise r.wrong(f"is quantized with scale_fmt={str(form)[:60]!r}; dsjax reads "
                      "'ue8m0' and none")
    given.pop("modules_to_not_convert", None)  # each tensor's dtype says so itself
    if any(v is not None for v in given.values()):
        raise r.wrong(f"is quantized with {str(sorted(given))[:100]}, which dsjax does not know; "
                      "remove them if they do not change the numbers")
    return True, form == "ue8m0"


def loss_of(r: Reader, model: ModelConfig) -> tuple[LossConfig, str | None]:
    """The balance losses to go on training with, and a sentence where the config names none.

    `aux_loss_alpha` weighs V3's sequence-wise loss, or V2's expert-level loss. Missing, as in V3's
    released config, it is the report's: 1e-4 (V3 sec. 4.2); 0.003, 0.05 and 0.02 (V2 sec. 3.1.2);
    0.001 (V2-Lite, App. B). All are sums over the rows of a batch, which is `seq_aux`.
    """
    if model.moe is None:
        return LossConfig(balance=0.0), None
    alpha = r.number("aux_loss_alpha", 0) if r.has("aux_loss_alpha") else None
    if not r.flag("seq_aux") and alpha != 0:
        raise r.wrong(
            "has seq_aux=False, a balance loss over the whole batch, but dsjax balances every "
            "sequence; set seq_aux to true, or aux_loss_alpha to 0"
        )
    kept = LossConfig()
    name = alpha_of(model)
    if name == "balance":
        weights, used = {name: kept.balance}, f"{kept.balance:g}, the V3 report's"
    elif model.moe.groups > 1:
        weights = {"balance": 0.0, name: 0.003, "device_balance": 0.05,
                   "communication_balance": 0.02}
        used = "0.003, with 0.05 and 0.02 for devices and communication, the V2 report's"
    else:
        weights, used = {"balance": 0.0, name: 0.001}, "0.001, the V2 report's for V2-Lite"
    if alpha is not None:
        return dataclasses.replace(kept, **(weights | {name: alpha})), None
    remark = f"aux_loss_alpha is not in the config: training would go on with {used}"
    return dataclasses.replace(kept, **weights), remark


def alpha_of(model: ModelConfig) -> str:
    """The field of LossConfig that `aux_loss_alpha` is of a model with experts."""
    assert model.moe is not None, "balance losses need experts"
    return "balance" if model.moe.score == "sigmoid" else "expert_balance"
