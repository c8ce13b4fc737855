"""The attributes of a released config.json: one table of them, and each read as what it must be.

An attribute is a line of `ROWS`, one that `config` reads besides (`BESIDES`), may only have the
value that released models have (`FIXED`), or changes no number (`INERT`); anything else is refused
by name. One that is absent has the default of its family's configuration class in transformers, and
is an error where it has none: a size that nobody wrote down is a guess. DeepSeek's own class has
other defaults (a factor of 1 where transformers has 2.5), so those that are read differently
(`is_open`) are remarked on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
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

NONE: Any = object()  # no default, or no meaning of null


@dataclass(frozen=True)
class Row:
    """A line of the table: an attribute, the field of ModelConfig that it is, and its values."""

    attribute: str
    field: str
    kind: type = int
    least: float = 1
    v2: Any = NONE  # default in DeepseekV2Config of transformers 5.23
    v3: Any = NONE  # default in DeepseekV3Config
    null: Any = NONE  # meaning of null
    is_open: bool = False  # the default changes what is computed, and engines differ in it


ROWS = (
    Row("vocab_size", "vocab"),
    Row("hidden_size", "d_model"),
    Row("num_hidden_layers", "layers"),
    Row("first_k_dense_replace", "dense_layers", least=0, v2=0, v3=3, is_open=True),
    Row("intermediate_size", "dense_dim"),
    Row("num_nextn_predict_layers", "mtp_depth", least=0, v2=0, v3=1),
    Row("rms_norm_eps", "norm_eps", float, -math.inf, 1e-6, 1e-6),
    Row("initializer_range", "init_std", float, -math.inf, 0.02, 0.02),
    Row("num_attention_heads", "attention.heads"),
    Row("q_lora_rank", "attention.q_rank", v2=1536, v3=1536, null=None),
    Row("kv_lora_rank", "attention.kv_rank"),
    Row("qk_nope_head_dim", "attention.nope_dim"),
    Row("qk_rope_head_dim", "attention.rope_dim"),
    Row("v_head_dim", "attention.value_dim"),
    Row("n_routed_experts", "moe.experts"),
    Row("num_experts_per_tok", "moe.experts_per_token"),
    Row("moe_intermediate_size", "moe.expert_dim"),
    Row("n_shared_experts", "moe.shared_experts", least=0, v2=2, v3=1, null=0, is_open=True),
    Row("norm_topk_prob", "moe.is_normalized", bool, v2=False, v3=True, is_open=True),
    Row("routed_scaling_factor", "moe.scale", float, -math.inf, 1.0, 2.5, is_open=True),
    Row("n_group", "moe.groups", v3=8, is_open=True),
    Row("topk_group", "moe.groups_per_token", v3=4, is_open=True),
    Row("scoring_func", "moe.score", str, v2="softmax", v3="sigmoid"),
)
BESIDES: dict[str, Json] = {
    "v2": {"rope_theta": 10000.0, "seq_aux": True, "topk_method": "greedy"},
    "v3": {"rope_theta": 10000.0, "seq_aux": True, "topk_method": "noaux_tc"},
}
"""Attributes that are more than a field, with their defaults; those without one are in `READ`."""

DEFAULTS: dict[str, Json] = {
    family: {row.attribute: getattr(row, family) for row in ROWS
             if getattr(row, family) is not NONE} | BESIDES[family]
    for family in BESIDES
}

FIXED: Json = {
    "hidden_act": "silu",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "tie_word_embeddings": False,
    "mlp_bias": False,
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

ALIASES = {
    "num_mtp_layers": "num_nextn_predict_layers",
    "num_experts": "n_routed_experts",
    "num_local_experts": "n_routed_experts",
}
READ = {row.attribute for row in ROWS} | BESIDES["v3"].keys() | {
    "num_key_value_heads", "head_dim", "qk_head_dim", "aux_loss_alpha", "rope_scaling",
    "rope_parameters", "quantization_config",
}  # fmt: skip


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


class Reader:
    """The attributes of one file or of an object in it, each asked for by name and kind.

    What is absent has its default, or is an error; null is an error but where it has a meaning.
    """

    def __init__(self, data: Json, where: str, defaults: Json | None = None) -> None:
        self.data, self.where, self.defaults = data, where, defaults or {}
        self.assumed: dict[str, Any] = {}

    def take(self, row: Row) -> Any:
        """Return the value of a line of the table."""
        if row.null is not NONE and self.is_null(row.attribute):
            return row.null
        if row.kind is int:
            return self.count(row.attribute, int(row.least))
        if row.kind is float:
            return self.number(row.attribute, row.least)
        return self.flag(row.attribute) if row.kind is bool else self.word(row.attribute)

    def count(self, name: str, least: int = 0) -> int:
        """Return a whole number."""
        value = self._value(name)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise self.wrong(f"has {name}={short(value)}, which is not a count"
                             f"{f' of at least {least}' if least else ''}; correct it")
        return value

    def number(self, name: str, least: float = -math.inf) -> float:
        """Return a finite number."""
        value = self._value(name)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not -1e30 < value < 1e30 or value < least:
            raise self.wrong(f"has {name}={short(value)}, which is not a number"
                             f"{f' of at least {least:g}' if least > -math.inf else ''}; "
                             "correct it")
        return float(value)

    def flag(self, name: str) -> bool:
        """Return true or false."""
        value = self._value(name)
        if not isinstance(value, bool):
            raise self.wrong(f"has {name}={short(value)}, which is not true or false; correct it")
        return value

    def word(self, name: str) -> str:
        """Return a string."""
        value = self._value(name)
        if not isinstance(value, str):
            raise self.wrong(f"has {name}={short(value)}, which is not a name; correct it")
        return value

    def nested(self, name: str) -> Reader:
        """Return an object, whose attributes are asked for in turn; empty where absent or null."""
        value = self.data.get(name)
        if value is not None and not isinstance(value, dict):
            raise self.wrong(f"has {name}={short(value)}, which is not an object; correct it")
        return Reader(dict(value or {}), f"{self.where} ({name})")

    def is_null(self, name: str) -> bool:
        """True if an attribute is there as null."""
        return name in self.data and self.data[name] is None

    def has(self, name: str) -> bool:
        """True if an attribute is there and is not null."""
        return self.data.get(name) is not None

    def wrong(self, what: str) -> UserError:
        """Return an error that names the file."""
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
    """Return the attributes, each by one name."""
    made: Json = {}
    for name, value in data.items():
        known = ALIASES.get(name, name)
        if known in made and made[known] != value:
            raise UserError(
                f"{where} says {known}={short(made[known])} and {name}={short(value)}; remove "
                "one of them"
            )
        made[known] = value
    return made


def refuse_kinds(r: Reader) -> None:
    """Refuse attributes that are carried over and are not of their kind."""
    for name, (is_one, what) in KINDS.items():
        if r.has(name) and not is_one(r.data[name]):
            raise r.wrong(f"has {name}={short(r.data[name])}, which is not {what}; correct it or "
                          "remove it")
    if r.has("aux_loss_alpha"):
        r.number("aux_loss_alpha", 0)


def refuse_unknown(r: Reader) -> None:
    """Refuse attributes that are not known or not of their kind, and other values of fixed ones."""
    refuse_kinds(r)
    for name, value in r.data.items():
        if name in FIXED:
            if value is not None and value != FIXED[name]:
                raise r.wrong(
                    f"has {name}={short(value)}; dsjax computes {name}={FIXED[name]!r} only, so "
                    "give another checkpoint"
                )
        elif name not in READ and name not in INERT and value is not None:
            mean = did_you_mean(name, READ)
            raise r.wrong(
                f"has the attribute {name[:100]}={str(value)[:60]!r}, which dsjax does not "
                f"know{mean}; remove it if it does not change the model"
            )


def short(value: Any) -> str:
    """Return a value as an error shows it, not longer than a line."""
    return "null" if value is None else repr(value)[:60]
