"""The attributes of a released config.json: which there are, and each read as what it must be.

An attribute is read (`READ`), may only have the value that released models have (`FIXED`), or
changes no number (`INERT`); anything else is refused by name. One that is absent has the default of
its family's configuration class in transformers, where a `Reader` is told that a default may stand
(`DEFAULTS`), and is an error elsewhere: a size that nobody wrote down is a guess. DeepSeek's own
class has other defaults (a factor of 1 where transformers has 2.5), so `OPEN` ones are remarked on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from dsjax.config.fields import did_you_mean
from dsjax.errors import UserError

Json = dict[str, Any]

FAMILIES = {"deepseek_v2": "v2", "deepseek_v3": "v3", "kimi_k2": "v3"}
"""Model types and the architecture they are."""

ROUTERS = {
    "v2": ("softmax", ("greedy", "group_limited_greedy")),
    "v3": ("sigmoid", ("noaux_tc",)),
}
"""Score and choices of an architecture: engines that know it compute no other."""

EVERY: Json = {"rms_norm_eps": 1e-6, "initializer_range": 0.02, "q_lora_rank": 1536,
               "rope_theta": 10000.0, "seq_aux": True}
DEFAULTS: dict[str, Json] = {
    "v2": EVERY | {
        "first_k_dense_replace": 0, "n_shared_experts": 2, "norm_topk_prob": False,
        "routed_scaling_factor": 1.0, "num_nextn_predict_layers": 0, "scoring_func": "softmax",
        "topk_method": "greedy",
    },
    "v3": EVERY | {
        "first_k_dense_replace": 3, "n_shared_experts": 1, "norm_topk_prob": True,
        "routed_scaling_factor": 2.5, "num_nextn_predict_layers": 1, "scoring_func": "sigmoid",
        "topk_method": "noaux_tc", "n_group": 8, "topk_group": 4,
    },
}  # fmt: skip
"""DeepseekV2Config and DeepseekV3Config of transformers 5.23, and what both models compute."""

OPEN = ("first_k_dense_replace", "n_shared_experts", "norm_topk_prob", "routed_scaling_factor",
        "n_group", "topk_group")
"""Attributes whose default changes what is computed, and is not the same to every engine."""

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
"""Attributes that may be missing or None, or have this value, which is the classes' default."""

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



def _is_id(value: Any) -> bool:
    return type(value) is int and abs(value) < 2**31


def _is_list(value: Any, is_one: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(map(is_one, value))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(
        ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id"),
        (lambda value: _is_id(value) or _is_list(value, _is_id), "an id or a list of ids")),
    **dict.fromkeys(("torch_dtype", "dtype", "tokenizer_class", "transformers_version"),
                    (_is_text, "a name")),
    "architectures": (lambda value: _is_list(value, _is_text), "a list of names"),
    "use_cache": (lambda value: isinstance(value, bool), "true or false"),
    "seq_aux": (lambda value: isinstance(value, bool), "true or false"),
    "max_position_embeddings": (lambda value: type(value) is int and value > 0, "a count"),
}
"""Attributes that are carried over, and what they must be where they are there."""

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


class Reader:
    """The attributes of one file or of an object in it, each asked for by name and kind.

    What is absent has its default, or is an error; null is an error but where `is_null` is asked.
    """

    def __init__(self, data: Json, where: str, defaults: Json | None = None) -> None:
        self.data, self.where, self.defaults = data, where, defaults or {}
        self.assumed: dict[str, Any] = {}

    def count(self, name: str, least: int = 0) -> int:
        """A whole number."""
        value = self._value(name)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise self.wrong(f"has {name}={_short(value)}, which is not a count"
                             f"{f' of at least {least}' if least else ''}; correct it")
        return value

    def number(self, name: str, least: float = -math.inf) -> float:
        """A finite number."""
        value = self._value(name)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not -1e30 < value < 1e30 or value < least:
            raise self.wrong(f"has {name}={_short(value)}, which is not a number"
                             f"{f' of at least {least:g}' if least > -math.inf else ''}; "
                             "correct it")
        return float(value)

    def flag(self, name: str) -> bool:
        """True or false."""
        value = self._value(name)
        if not isinstance(value, bool):
            raise self.wrong(f"has {name}={_short(value)}, which is not true or false; correct it")
        return value

    def word(self, name: str) -> str:
        """A string."""
        value = self._value(name)
        if not isinstance(value, str):
            raise self.wrong(f"has {name}={_short(value)}, which is not a name; correct it")
        return value

    def nested(self, name: str) -> Reader:
        """An object, whose attributes are asked for in turn; absent or null, one without any."""
        value = self.data.get(name)
        if value is not None and not isinstance(value, dict):
            raise self.wrong(f"has {name}={_short(value)}, which is not an object; correct it")
        return Reader(dict(value or {}), f"{self.where} ({name})")

    def is_null(self, name: str) -> bool:
        """Whether an attribute is there as null."""
        return name in self.data and self.data[name] is None

    def has(self, name: str) -> bool:
        """Whether an attribute is there and is not null."""
        return self.data.get(name) is not None

    def wrong(self, what: str) -> UserError:
        """An error that names the file."""
        return UserError(f"{self.where} {what}")

    def _value(self, name: str) -> Any:
        if name in self.data:
            if self.data[name] is None:
                instead = " or remove it" if name in self.defaults else ""
                raise self.wrong(f"has {name}=null; give it a value{instead}")
            return self.data[name]
        if name not in self.defaults:
            raise self.wrong(f"lacks {name!r}; add it")
        self.assumed[name] = self.defaults[name]
        return self.defaults[name]


def unaliased(data: Json, where: str) -> Json:
    """Call every attribute by one name."""
    made: Json = {}
    for name, value in data.items():
        known = ALIASES.get(name, name)
        if known in made and made[known] != value:
            raise UserError(
                f"{where} says {known}={_short(made[known])} and {name}={_short(value)}; remove "
                "one of them"
            )
        made[known] = value
    return made


def refuse_kinds(r: Reader) -> None:
    """Attributes that are carried over are of their kind."""
    for name, (is_one, what) in KINDS.items():
        if r.has(name) and not is_one(r.data[name]):
            raise r.wrong(f"has {name}={_short(r.data[name])}, which is not {what}; correct it or "
                          "remove it")
    if r.has("aux_loss_alpha"):
        r.number("aux_loss_alpha", 0)


def refuse_unknown(r: Reader) -> None:
    """Every attribute is known and of its kind, and those that are fixed have their value."""
    refuse_kinds(r)
    for name, value in r.data.items():
        if name in FIXED:
            if value is not None and value != FIXED[name]:
                raise r.wrong(
                    f"has {name}={_short(value)}; dsjax computes {name}={FIXED[name]!r} only, so "
                    "give another checkpoint"
                )
        elif name not in READ and name not in INERT and value is not None:
            mean = did_you_mean(name, READ)
            raise r.wrong(
                f"has the attribute {name[:100]}={str(value)[:60]!r}, which dsjax does not "
                f"know{mean}; remove it if it does not change the model"
            )


def _short(value: Any) -> str:
    """A value in an error, not longer than a line."""
    return "null" if value is None else repr(value)[:60]
