"""Every attribute of a released config is understood, at its default, or refused by name."""

import dataclasses
import json
import re

import pytest

from configs import deepseek_v2, deepseek_v2_lite, deepseek_v3, kimi_k2, moonlight_16b_a3b, tiny
from dsjax.config.loss import LossConfig
from dsjax.config.model import MLAConfig, ModelConfig, MoEConfig, RopeConfig, YarnConfig
from dsjax.errors import UserError
from dsjax.released import config
from dsjax.released.attributes import DEFAULTS

YARN = {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 32,
        "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0}
SHARED = {"attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 0, "eos_token_id": 1,
          "hidden_act": "silu", "initializer_range": 0.02, "kv_lora_rank": 512,
          "max_position_embeddings": 163840, "moe_layer_freq": 1, "pretraining_tp": 1,
          "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "rms_norm_eps": 1e-06,
          "rope_theta": 10000, "seq_aux": True, "tie_word_embeddings": False,
          "torch_dtype": "bfloat16", "use_cache": True, "v_head_dim": 128}
FP8 = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
       "weight_block_size": [128, 128]}
# As released (DeepSeek-R1), with its leftovers.
R1 = SHARED | {
    "architectures": ["DeepseekV3ForCausalLM"], "auto_map": {"AutoConfig": "x.Y"},
    "aux_loss_alpha": 0.001, "ep_size": 1, "first_k_dense_replace": 3, "hidden_size": 7168,
    "intermediate_size": 18432, "model_type": "deepseek_v3", "moe_intermediate_size": 2048,
    "n_group": 8, "n_routed_experts": 256, "n_shared_experts": 1, "norm_topk_prob": True,
    "num_attention_heads": 128, "num_experts_per_tok": 8, "num_hidden_layers": 61,
    "num_key_value_heads": 128, "num_nextn_predict_layers": 1, "q_lora_rank": 1536,
    "quantization_config": FP8, "rope_scaling": YARN, "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid", "topk_group": 4, "topk_method": "noaux_tc",
    "transformers_version": "4.46.3", "vocab_size": 129280,
}
KIMI = R1 | {
    "model_type": "kimi_k2", "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
    "n_routed_experts": 384, "num_attention_heads": 64, "num_key_value_heads": 64,
    "num_nextn_predict_layers": 0, "routed_scaling_factor": 2.827, "rope_theta": 50000.0,
    "rope_scaling": YARN | {"factor": 32.0, "beta_fast": 1.0}, "vocab_size": 163840,
}
MOONLIGHT = R1 | {
    "first_k_dense_replace": 1, "hidden_size": 2048, "intermediate_size": 11264, "n_group": 1,
    "topk_group": 1, "n_routed_experts": 64, "n_shared_experts": 2, "num_attention_heads": 16,
    "num_key_value_heads": 16, "num_experts_per_tok": 6, "num_hidden_layers": 27,
    "moe_intermediate_size": 1408, "num_nextn_predict_layers": 0, "q_lora_rank": None,
    "rms_norm_eps": 1e-05, "rope_theta": 50000.0, "rope_scaling": None,
    "routed_scaling_factor": 2.446, "vocab_size": 163840, "quantization_config": None,
}
V2 = SHARED | {
    "model_type": "deepseek_v2", "first_k_dense_replace": 1, "hidden_size": 5120,
    "intermediate_size": 12288, "moe_intermediate_size": 1536, "n_group": 8, "topk_group": 3,
    "n_routed_experts": 160, "n_shared_experts": 2, "norm_topk_prob": False,
    "num_attention_heads": 128, "num_key_value_heads": 128, "num_experts_per_tok": 6,
    "num_hidden_layers": 60, "q_lora_rank": 1536, "rope_scaling": YARN,
    "routed_scaling_factor": 16.0, "scoring_func": "softmax",
    "topk_method": "group_limited_greedy", "vocab_size": 102400,
}
LITE = V2 | {
    "aux_loss_alpha": 0.001, "hidden_size": 2048, "intermediate_size": 10944,
    "moe_intermediate_size": 1408, "n_group": 1, "topk_group": 1, "n_routed_experts": 64,
    "num_attention_heads": 16, "num_key_value_heads": 16, "num_hidden_layers": 27,
    "q_lora_rank": None, "rope_scaling": YARN | {"mscale": 0.707, "mscale_all_dim": 0.707},
    "routed_scaling_factor": 1.0, "topk_method": "greedy",
}
CASES = {
    "r1": (R1, deepseek_v3), "kimi": (KIMI, kimi_k2), "moonlight": (MOONLIGHT, moonlight_16b_a3b),
    "v2": (V2, deepseek_v2), "v2_lite": (LITE, deepseek_v2_lite),
}
STRETCHED = {
    "r1": YarnConfig(), "kimi": YarnConfig(factor=32.0, beta_fast=1.0), "moonlight": None,
    "v2": YarnConfig(), "v2_lite": YarnConfig(mscale=0.707, mscale_all_dim=0.707),
}


@pytest.mark.parametrize("name", CASES)
def test_a_released_config_is_the_model_of_the_projects_own_and_its_yarn(name):
    data, module = CASES[name]
    ours = module.config().model
    assert ours.rope.yarn is None  # the project's are pre-training, the released are stretched
    rope = dataclasses.replace(ours.rope, yarn=STRETCHED[name])
    assert config.read(data).model == dataclasses.replace(ours, rope=rope, init_std=0.02)


@pytest.mark.parametrize("name", CASES)
def test_writing_gives_back_every_attribute_that_says_something(name):
    data, _ = CASES[name]
    read = config.read(data)
    quantized = "float" if data.get("quantization_config") else None
    written = config.write(read.model, "bfloat16", quantized, data)
    assert config.read(written) == read
    silent = {"pretraining_tp", "ep_size", "transformers_version"}
    for key, value in data.items():
        if value is not None and key not in silent:
            assert written.get(key) == value, key


ATTENTION = MLAConfig(3, 8, 6, 4, 5, q_rank=None)
V3_MOE = MoEConfig(8, 2, 7, groups=4, groups_per_token=2, scale=2.5)
WRITABLE = {
    "tiny": tiny.config().model,
    "dense only": ModelConfig(7, 8, 2, 2, 9, ATTENTION),
    "no dense layer": ModelConfig(7, 8, 2, 0, 9, ATTENTION, V3_MOE, norm_eps=1e-5),
    "yarn without mscales": ModelConfig(7, 8, 2, 1, 9, ATTENTION, V3_MOE, rope=RopeConfig(
        5000.0, YarnConfig(4.0, 32, mscale_all_dim=0.0))),
    "odd yarn": ModelConfig(7, 8, 2, 1, 9, ATTENTION, V3_MOE, rope=RopeConfig(
        5000.0, YarnConfig(4.0, 32, 16.0, 2.0, 0.7, 1.3))),
}


@pytest.mark.parametrize("name", WRITABLE)
def test_a_model_survives_writing_and_reading(name):
    written = json.loads(json.dumps(config.write(WRITABLE[name], "float32")))
    assert config.read(written).model == WRITABLE[name]


def test_both_spellings_of_the_rotary_attributes_mean_the_same():
    newer = {k: v for k, v in KIMI.items() if k not in ("rope_theta", "rope_scaling")}
    scaling = {k: v for k, v in KIMI["rope_scaling"].items() if k != "type"}
    newer["rope_parameters"] = scaling | {"rope_type": "yarn", "rope_theta": 50000.0}
    assert config.read(newer) == config.read(KIMI)
    both = KIMI | {"rope_parameters": newer["rope_parameters"]}
    assert config.read(both) == config.read(KIMI)
    plain = {k: v for k, v in newer.items() if k != "rope_parameters"}
    plain["rope_parameters"] = {"rope_type": "default", "rope_theta": 7.0}
    assert config.read(plain).model.rope == RopeConfig(7.0)


def test_a_missing_balance_loss_is_the_reports_and_not_zero():
    bare = {k: v for k, v in R1.items() if k != "aux_loss_alpha"}
    assert config.read(R1).loss.balance == 0.001
    read = config.read(bare)
    assert read.loss.balance == 0.0001
    assert "0.0001, the V3 report's" in read.remarks[0]
    v2 = config.read(V2)
    assert v2.loss == deepseek_v2.config().loss
    assert "0.003" in v2.remarks[0]
    assert config.read(LITE).loss == deepseek_v2_lite.config().loss
    assert not config.read(LITE).remarks


@pytest.mark.parametrize(("data", "family"), [(R1, "v3"), (V2, "v2"), (LITE, "v2")])
def test_a_missing_attribute_has_the_default_of_its_class_in_transformers(data, family):
    """Their figures, which tests/conformance holds against the installed classes."""
    data = data | {"aux_loss_alpha": 0.001}
    for name, value in DEFAULTS[family].items():
        bare = {k: v for k, v in data.items() if k != name}
        assert config.read(bare).model == config.read(data | {name: value}).model, name
        assert config.read(bare).loss == config.read(data | {name: value}).loss, name
    bare = {k: v for k, v in R1.items() if k not in ("n_group", "routed_scaling_factor")}
    read = config.read(bare)
    assert (read.model.moe.groups, read.model.moe.scale) == (8, 2.5)
    said = "not in the config: routed_scaling_factor=2.5, n_group=8, the defaults of transformers"
    assert [r for r in read.remarks if said in r] == list(read.remarks)[:1]


def test_what_has_no_default_is_needed():
    needed = ("vocab_size", "hidden_size", "n_routed_experts", "num_experts_per_tok",
              "moe_intermediate_size", "kv_lora_rank", "v_head_dim", "num_hidden_layers")
    for name in needed:
        with pytest.raises(UserError, match=f"lacks '{name}'; add it"):
            config.read({k: v for k, v in R1.items() if k != name})
    grouped = {k: v for k, v in V2.items() if k != "topk_group"}
    with pytest.raises(UserError, match="lacks 'topk_group'"):
        config.read(grouped)


def test_null_means_without_where_the_released_code_says_so():
    assert config.read(R1 | {"q_lora_rank": None}).model.attention.q_rank is None
    assert config.read(R1 | {"n_shared_experts": None}).model.moe.shared_experts == 0
    dense = R1 | {"n_routed_experts": None, "num_nextn_predict_layers": 0}
    assert config.read(dense).model.moe is None
    assert config.read(dense).model.dense_layers == 61


WRONG = {
    "unknown": ({"index_topk": 2048}, "attribute index_topk='2048', which dsjax does not know"),
    "misspelled": ({"n_grup": 8}, "did you mean n_group"),
    "another type": ({"model_type": "llama"}, "model_type 'llama'; dsjax reads deepseek_v2"),
    "no size": ({"kv_lora_rank": None}, "kv_lora_rank=null; give it a value"),
    "no count": ({"hidden_size": "big"}, "hidden_size='big', which is not a count"),
    "tied": ({"tie_word_embeddings": True}, "computes tie_word_embeddings=False only"),
    "bias": ({"attention_bias": True}, "attention_bias=True"),
    "halves": ({"rope_interleave": False}, "rope_interleave=False"),
    "gelu": ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
    "every other layer": ({"moe_layer_freq": 2}, "moe_layer_freq=2"),
    "kv heads": ({"num_key_value_heads": 8}, "num_key_value_heads=8, but latent attention"),
    "mixed router": ({"topk_method": "greedy"}, "scoring_func='sigmoid' with topk_method='greedy'"),
    "linear rope": ({"rope_scaling": {"type": "linear", "factor": 2}}, "by 'linear'"),
    "no factor": ({"rope_scaling": {"type": "yarn", "factor": 2}}, "lacks 'original_max_position"),
    "two thetas": ({"rope_parameters": {"rope_theta": 5.0, "rope_type": "default"}},
                   "rope_theta=10000 and 5, in rope_parameters,"),
    "a theta in the scaling": ({"rope_scaling": YARN | {"rope_theta": 7}}, "7, in rope_scaling,"),
    "two scalings": ({"rope_parameters": YARN | {"factor": 2, "rope_theta": 10000}}, "that differ"),
    "half an mscale": ({"rope_scaling": YARN | {"mscale": 0.7, "mscale_all_dim": None}},
                       "mscale=0.7 without mscale_all_dim"),
    "attention factor": ({"rope_scaling": YARN | {"attention_factor": 1.0}}, "attention_factor"),
    "int8": ({"quantization_config": FP8 | {"quant_method": "gptq"}}, "quant_method='gptq'"),
    "per tensor": ({"quantization_config": FP8 | {"weight_block_size": None}}, "weight_block_size"),
    "no division": ({"n_group": 7}, "experts=256 is not divisible by groups=7"),
    "no mscale": ({"rope_scaling": YARN | {"mscale": 0, "mscale_all_dim": 0}}, "mscale=0 without"),
    "no beta": ({"rope_scaling": YARN | {"beta_slow": 0}}, "beta of 0"),
    "null": ({"norm_topk_prob": None}, "norm_topk_prob=null; give it a value or remove it"),
    "null for a size": ({"vocab_size": None}, "vocab_size=null; give it a value"),
    "half a layer": ({"first_k_dense_replace": 1.5}, "first_k_dense_replace=1.5"),
    "negative": ({"num_nextn_predict_layers": -1}, "num_nextn_predict_layers=-1"),
    "a word for MTP": ({"num_nextn_predict_layers": "one"}, "num_nextn_predict_layers='one'"),
    "a word for a flag": ({"norm_topk_prob": "yes"}, "norm_topk_prob='yes', which is not true or"),
    "a word for a number": ({"routed_scaling_factor": "2.5"}, "'2.5', which is not a number"),
    "not finite": ({"routed_scaling_factor": float("nan")}, "routed_scaling_factor=nan"),
    "beyond a float": ({"rms_norm_eps": 10**400}, "which is not a number"),
    "no groups": ({"n_group": 0}, "n_group=0, which is not a count of at least 1"),
    "a list for a router": ({"scoring_func": ["sigmoid"]}, "scoring_func=['sigmoid']"),
    "a list for a type": ({"model_type": ["x"]}, "model_type=['x'], which is not a name"),
    "a word for an epsilon": ({"rms_norm_eps": "small"}, "rms_norm_eps='small'"),
    "no epsilon": ({"rms_norm_eps": 0.0}, "norm_eps=0.0 must be above 0"),
    "no rank": ({"q_lora_rank": 0}, "q_lora_rank=0"),
    "a list of heads": ({"num_key_value_heads": [1]}, "num_key_value_heads=[1]"),
    "a word for a scaling": ({"rope_scaling": "yarn"}, "rope_scaling='yarn', which is not an obj"),
    "a word for a theta": ({"rope_theta": "big"}, "rope_theta='big'"),
    "a theta of 1": ({"rope_theta": 1}, "RopeConfig.theta=1.0 must be above 1"),
    "a word in YaRN": ({"rope_scaling": YARN | {"factor": "big"}}, "factor='big'"),
    "half a position": ({"rope_scaling": YARN | {"original_max_position_embeddings": 4.5}},
                        "original_max_position_embeddings=4.5"),
    "a list in YaRN": ({"rope_scaling": YARN | {"beta_fast": [32]}}, "beta_fast=[32]"),
    "a number for a type": ({"rope_scaling": YARN | {"type": 4}}, "type=4, which is not a name"),
    "a word for FP8": ({"quantization_config": "fp8"}, "quantization_config='fp8', which is not"),
    "a word for alpha": ({"aux_loss_alpha": "small"}, "aux_loss_alpha='small'"),
    "a negative alpha": ({"aux_loss_alpha": -1.0}, "aux_loss_alpha=-1.0, which is not a number of"),
    "a balance over the batch": ({"seq_aux": False}, "seq_aux=False, a balance loss over the"),
    "two names": ({"num_mtp_layers": 2}, "num_nextn_predict_layers=1 and num_mtp_layers=2"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_dsjax_would_compute_otherwise_is_refused_in_one_sentence(name):
    change, sentence = WRONG[name]
    with pytest.raises(UserError, match=re.escape(sentence)) as raised:
        config.read(R1 | change, "here/config.json")
    assert str(raised.value).startswith("here/config.json")
    assert "\n" not in str(raised.value)


def test_a_normalized_softmax_is_refused_for_its_two_readings():
    with pytest.raises(UserError, match="transformers ignores"):
        config.read(V2 | {"norm_topk_prob": True})


def test_the_latents_have_an_epsilon_of_their_own_that_no_attribute_says():
    model = config.read(MOONLIGHT).model
    assert model.norm_eps == 1e-5
    assert model.attention.latent_norm_eps == 1e-6
    other = dataclasses.replace(ATTENTION, latent_norm_eps=1e-5)
    with pytest.raises(UserError, match="latent_norm_eps=1e-05 has no released form"):
        config.write(dataclasses.replace(model, attention=other), "float32")


def test_mixtures_of_the_wrong_family_are_refused():
    softmax = {"scoring_func": "softmax", "topk_method": "greedy", "norm_topk_prob": False}
    with pytest.raises(UserError, match="a deepseek_v3 model pairs sigmoid with noaux_tc"):
        config.read(R1 | softmax)
    with pytest.raises(UserError, match="deepseek_v2 has no MTP modules in any engine"):
        config.read(V2 | {"num_nextn_predict_layers": 1})


def test_the_balance_losses_weight_is_written_where_it_is_known():
    def alpha(data, loss):
        model = config.read(data).model
        return config.write(model, "float32", None, data, loss).get("aux_loss_alpha")

    bare = {k: v for k, v in R1.items() if k != "aux_loss_alpha"}
    assert alpha(R1, None) == 0.001
    assert alpha(R1, LossConfig(balance=0.5)) == 0.5
    assert alpha(bare, LossConfig(balance=0.5)) == 0.5
    assert alpha(bare, LossConfig()) is None  # as its source, which means the report's
    assert alpha(LITE, LossConfig(expert_balance=0.25)) == 0.25
    own = config.write(tiny.config().model, "float32", loss=LossConfig())
    assert (own["aux_loss_alpha"], own["seq_aux"]) == (1e-4, True)


def test_a_batchwise_balance_that_weighs_nothing_is_no_matter():
    assert config.read(V2 | {"seq_aux": False, "aux_loss_alpha": 0}).loss.expert_balance == 0


def test_a_stretched_model_does_not_keep_the_context_of_its_source():
    short = MOONLIGHT | {"max_position_embeddings": 8192}
    model = config.read(short).model
    assert config.write(model, "float32", like=short)["max_position_embeddings"] == 8192
    longer = dataclasses.replace(model, rope=RopeConfig(50000.0, YarnConfig(40.0, 4096)))
    assert config.write(longer, "float32", like=short)["max_position_embeddings"] == 163840


def test_a_checkpoint_is_not_like_one_of_the_other_architecture():
    with pytest.raises(UserError, match="the checkpoint to be like is deepseek_v2"):
        config.write(config.read(R1).model, "float32", like=V2)


UNWRITABLE = {
    "a capacity": dataclasses.replace(V3_MOE, capacity_factor=1.5),
    "no shared expert": dataclasses.replace(V3_MOE, shared_experts=0),
    "one expert": dataclasses.replace(V3_MOE, experts=1, experts_per_token=1, groups=1,
                                      groups_per_token=1, is_normalized=False),
    "sigmoid without bias": dataclasses.replace(V3_MOE, has_bias=False),
    "softmax with bias": dataclasses.replace(V3_MOE, score="softmax", group_score="max"),
    "sigmoid by best expert": dataclasses.replace(V3_MOE, group_score="max"),
}


@pytest.mark.parametrize("name", UNWRITABLE)
def test_routers_that_no_released_model_has_are_not_written(name):
    cfg = ModelConfig(7, 8, 2, 1, 9, ATTENTION, UNWRITABLE[name])
    with pytest.raises(UserError, match="has no released form"):
        config.write(cfg, "float32")


V2_MOE = dataclasses.replace(V3_MOE, score="softmax", group_score="max", is_normalized=False,
                             has_bias=False)
YARNS = {"another mscale": YarnConfig(mscale=0.7, mscale_all_dim=0.0),
         "no mscale": YarnConfig(mscale=0.0), "no mscales": YarnConfig(mscale=0, mscale_all_dim=0)}
FORMLESS = {name: ModelConfig(7, 9, 2, 1, 9, ATTENTION, V3_MOE, rope=RopeConfig(yarn=yarn))
            for name, yarn in YARNS.items()} | {
    "softmax with MTP": ModelConfig(7, 9, 2, 1, 9, ATTENTION, V2_MOE, mtp_depth=1),
    "dense with MTP": ModelConfig(7, 9, 2, 2, 9, ATTENTION, mtp_depth=1),
    "V2 of odd width": ModelConfig(7, 8, 2, 1, 9, ATTENTION, V2_MOE),
}


@pytest.mark.parametrize("name", FORMLESS)
def test_models_that_transformers_cannot_be_told_of_are_not_written(name):
    with pytest.raises(UserError, match="has no released form"):
        config.write(FORMLESS[name], "float32")
