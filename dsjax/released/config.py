"""A released config.json as a ModelConfig, and back: every attribute understood, or an error.

What there is to understand, and what a missing attribute means, is the table of `attributes`, read
here from left to right and from right to left. A model that no released architecture describes is
refused: what is written must be the same function in transformers, vLLM and SGLang.

Two attributes are leftovers in released files. `initializer_range` (0.02; the V3 report trains from
0.006) is read as it stands. `aux_loss_alpha` too, and a missing one is not zero: see `loss_of`.
`rms_norm_eps` is of every norm but the latents', which have 1e-6: see `MLAConfig.latent_norm_eps`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from dsjax.config.loss import LossConfig
from dsjax.config.model import MLAConfig, ModelConfig, MoEConfig
from dsjax.errors import UserError
from dsjax.released import rotary
from dsjax.released.attributes import (
    DEFAULTS,
    FAMILIES,
    FIXED,
    INERT,
    ROUTERS,
    ROWS,
    Json,
    Reader,
    refuse_kinds,
    refuse_unknown,
    unaliased,
)

LIKE = "the config.json of the checkpoint to be like"
QUANTIZED: Json = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
                   "weight_block_size": [128, 128]}
NO_MIXTURE: Json = {
    "n_routed_experts": 1, "num_experts_per_tok": 1, "moe_intermediate_size": 1,
    "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "topk_method": "noaux_tc",
    "scoring_func": "sigmoid", "norm_topk_prob": True, "routed_scaling_factor": 1.0,
}
"""Attributes of a model without experts: transformers makes dense layers of all, no expert."""


@dataclass(frozen=True)
class Released:
    """The model and the losses that a config.json describes."""

    model: ModelConfig
    loss: LossConfig
    remarks: tuple[str, ...]
    """Sentences about what was assumed."""


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
    _refuse_quantization(r)
    try:
        model = _model(r, family)
        loss, remark = loss_of(r, model)
    except UserError:
        raise
    except (ValueError, TypeError) as error:
        raise r.wrong(f"describes no model ({error}); correct it") from None
    return Released(model, loss, tuple(text for text in (_assumed(r), remark) if text))


def write(model: ModelConfig, dtype: str, quantized: str | None = None,
          like: Json | None = None, loss: LossConfig | None = None) -> Json:
    """Return the released config of a model; `read` gives the model back.

    quantized: None, "float" or "ue8m0", how FP8 scales are. `like` is a config whose attributes
    that a ModelConfig has no place for (token ids, context length, model type) are kept. `loss`
    gives aux_loss_alpha, which is `like`'s otherwise.
    """
    assert isinstance(model.attention, MLAConfig), "placements() refused this"
    _refuse(model, model.attention)
    family = "v2" if model.moe is not None and model.moe.score == "softmax" else "v3"
    kept = unaliased(like or {}, LIKE)
    if FAMILIES.get(str(kept.get("model_type", f"deepseek_{family}"))) != family:
        raise UserError(
            f"the model is of the architecture deepseek_{family}, but the checkpoint to be like is "
            f"{str(kept['model_type'])[:60]}; give one of the same architecture"
        )
    refuse_kinds(Reader(kept, LIKE))
    stale = {"dtype", "torch_dtype"}
    if rotary.read(Reader(kept, LIKE, DEFAULTS[family])) != model.rope:
        stale.add("max_position_embeddings")  # a stretched model has another context
    made: Json = {
        "architectures": [f"Deepseek{family.upper()}ForCausalLM"],
        "model_type": f"deepseek_{family}",
        "max_position_embeddings": _context(model),
        "use_cache": True,
    }
    made |= {k: v for k, v in kept.items() if k in INERT - stale}
    made |= {name: FIXED[name] for name in ("hidden_act", "attention_bias", "attention_dropout",
                                            "tie_word_embeddings", "moe_layer_freq")}
    made |= {"torch_dtype": dtype, "num_key_value_heads": model.attention.heads}
    made |= {row.attribute: _value(model, row.field) for row in ROWS
             if model.moe is not None or not row.field.startswith("moe.")}
    made |= NO_MIXTURE if model.moe is None else {"topk_method": _method(model.moe)}
    made |= rotary.write(model.rope)
    made |= _alpha(model, kept, like is not None, loss)
    if quantized:
        form = {"scale_fmt": "ue8m0"} if quantized == "ue8m0" else {}
        made["quantization_config"] = QUANTIZED | form
    return dict(sorted(made.items()))


# From attributes


def _model(r: Reader, family: str) -> ModelConfig:
    """Sizes of the model, and what its layers are."""
    fields = _fields(r, "")
    layers, mtp = fields["layers"], fields["mtp_depth"]
    if mtp and family == "v2":
        raise r.wrong(
            f"has num_nextn_predict_layers={mtp}, but {r.word('model_type')} has no MTP modules in "
            "any engine; set it to 0"
        )
    first = min(fields["dense_layers"], layers)
    is_dense = r.is_null("n_routed_experts")  # DeepSeek's code makes every layer dense then
    if is_dense:
        first = layers
        r.assumed.pop("first_k_dense_replace", None)
    is_dense |= first == layers and not mtp
    return ModelConfig(**fields | {"dense_layers": first}, attention=_attention(r),
                       moe=None if is_dense else _moe(r, family), rope=rotary.read(r))


def _fields(r: Reader, owner: str, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """The fields of a part of ModelConfig, by the table."""
    rows = [row for row in ROWS if row.field.rpartition(".")[0] == owner
            and row.attribute not in without]
    return {row.field.rpartition(".")[2]: r.take(row) for row in rows}


def _attention(r: Reader) -> MLAConfig:
    """Sizes of latent attention; the derived ones that transformers writes must agree."""
    made = MLAConfig(**_fields(r, "attention"))
    derived = {"num_key_value_heads": made.heads, "head_dim": made.rope_dim,
               "qk_head_dim": made.nope_dim + made.rope_dim}
    for name, value in derived.items():
        if r.has(name) and r.count(name) != value:
            raise r.wrong(f"has {name}={str(r.data[name])[:60]}, but latent attention here means "
                          f"{value}; correct one of them")
    return made


def _moe(r: Reader, family: str) -> MoEConfig:
    """Experts and their choice."""
    score, method = r.word("scoring_func"), r.word("topk_method")
    released, methods = ROUTERS[family]
    if score != released or method not in methods:
        raise r.wrong(
            f"has scoring_func={score!r} with topk_method={method!r}; a {r.word('model_type')} "
            f"model pairs {released} with {' or '.join(methods)}, whatever its config says"
        )
    grouping = ("n_group", "topk_group") if method == "greedy" else ()
    fields = _fields(r, "moe", without=grouping) | dict.fromkeys(
        ("groups", "groups_per_token") if grouping else (), 1)
    if score == "softmax" and fields["is_normalized"]:
        raise r.wrong(
            "has norm_topk_prob=True with scoring_func='softmax', which DeepSeek's code normalizes "
            "and does not scale and transformers ignores; no released model has it, set it to False"
        )
    is_v3 = method == "noaux_tc"
    return MoEConfig(**fields, group_score="top2" if is_v3 else "max", has_bias=is_v3)


def _assumed(r: Reader) -> str | None:
    """A sentence about attributes whose absence engines read differently."""
    taken = {row.attribute: r.assumed[row.attribute] for row in ROWS
             if row.is_open and row.attribute in r.assumed}
    if not taken:
        return None
    names = ", ".join(f"{name}={value}" for name, value in taken.items())
    return f"not in the config: {names}, the defaults of transformers, are used"


def _refuse_quantization(r: Reader) -> None:
    """Refuse another quantization than FP8 in blocks; each tensor's dtype says what it is."""
    given = dict(r.nested("quantization_config").data)
    for name, value in QUANTIZED.items():
        if (found := given.pop(name, value)) != value:
            raise r.wrong(f"is quantized with {name}={str(found)[:60]!r}; dsjax reads {value!r} "
                          "only")
    form = given.pop("scale_fmt", None)
    if form not in (None, "float", "ue8m0"):
        raise r.wrong(f"is quantized with scale_fmt={str(form)[:60]!r}; dsjax reads "
                      "'ue8m0' and none")
    given.pop("modules_to_not_convert", None)
    if any(v is not None for v in given.values()):
        raise r.wrong(f"is quantized with {str(sorted(given))[:100]}, which dsjax does not know; "
                      "remove them if they do not change the numbers")


def loss_of(r: Reader, model: ModelConfig) -> tuple[LossConfig, str | None]:
    """Return the balance losses to train on with, and a sentence where the config names none.

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
    name = _alpha_of(model)
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


def _alpha_of(model: ModelConfig) -> str:
    """The field of LossConfig that `aux_loss_alpha` is of a model with experts."""
    assert model.moe is not None, "balance losses need experts"
    return "balance" if model.moe.score == "sigmoid" else "expert_balance"


# To attributes


def _value(model: ModelConfig, field: str) -> Any:
    """A field by its dotted name."""
    found: Any = model
    for name in field.split("."):
        found = getattr(found, name)
    return found


def _method(moe: MoEConfig) -> str:
    """The choice of experts by its released name."""
    if moe.score == "sigmoid":
        return "noaux_tc"
    return "group_limited_greedy" if moe.groups > 1 else "greedy"


def _context(model: ModelConfig) -> int:
    """Positions a model is made for, as far as its rotary frequencies tell."""
    yarn = model.rope.yarn
    return round(yarn.factor * yarn.original_length) if yarn else 4096


def _alpha(model: ModelConfig, kept: Json, is_like: bool, loss: LossConfig | None) -> Json:
    """The weight of the balance loss; where the model's source named none and means it, none."""
    stated: Json = {k: kept[k] for k in ("aux_loss_alpha", "seq_aux") if k in kept}
    if loss is None or model.moe is None:
        return stated
    name = _alpha_of(model)
    means = loss_of(Reader({}, "", {"seq_aux": True}), model)[0]
    if is_like and "aux_loss_alpha" not in stated and getattr(loss, name) == getattr(means, name):
        return stated
    return stated | {"aux_loss_alpha": getattr(loss, name), "seq_aux": True}


def _refuse(model: ModelConfig, a: MLAConfig) -> None:
    """Refuse what released code cannot compute, whatever config it is given."""
    moe = model.moe
    if a.latent_norm_eps != 1e-6:
        raise _formless(f"latent_norm_eps={a.latent_norm_eps}",
                        "released code norms the latents with 1e-06, whatever the config says")
    if why := rotary.refuse(model.rope):
        raise UserError(why)
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
