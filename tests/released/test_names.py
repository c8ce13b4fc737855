"""Every released tensor has one place of its shape, and every parameter is filled exactly once."""

import itertools
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from configs import deepseek_v2, deepseek_v2_lite, deepseek_v3, kimi_k2, moonlight_16b_a3b, tiny
from dsjax import params
from dsjax.config.model import GQAConfig, ModelConfig
from dsjax.errors import UserError
from dsjax.model import transformer
from dsjax.released import names as hf_names
from dsjax.released.names import SCALE, placements, scale_shape

R1 = Path(__file__).parents[1] / "golden" / "hf_r1_tensors.json"


def released_r1():
    """Names, shapes and dtypes of the released DeepSeek-R1 checkpoint, written out."""
    made = {}
    for pattern, (shape, dtype, count) in json.loads(R1.read_text()).items():
        ranges = [range(int(a), int(b) + 1) for a, b in re.findall(r"(\d+)-(\d+)\}", pattern)]
        form = re.sub(r"\{[^}]*\}", "{}", pattern)
        names = [form.format(*numbers) for numbers in itertools.product(*ranges)]
        assert len(names) == count, pattern
        made |= {name: (tuple(shape), dtype) for name in names}
    return made


def test_all_91991_tensors_of_the_released_r1_have_their_places_and_none_is_left_over():
    released = released_r1()
    ours = {}
    for place in placements(deepseek_v3.config().model):
        is_bias = place.name.endswith("e_score_correction_bias")
        ours[place.name] = (place.shape, "F8_E4M3" if place.is_product else "F32" if is_bias
                            else "BF16")
        if place.is_product:
            ours[place.name + SCALE] = (scale_shape(place.shape), "F32")
    assert len(released) == 91_991
    assert ours == released


def test_r1_holds_the_parameters_of_the_specs():
    cfg = deepseek_v3.config().model
    own = [p for p in placements(cfg) if p.copy_of is None]
    assert sum(math.prod(p.shape) for p in own) == params.size(transformer.specs(cfg))


RELEASED = [tiny, deepseek_v2, deepseek_v2_lite, moonlight_16b_a3b, kimi_k2]


@pytest.mark.parametrize("config", RELEASED, ids=lambda c: c.__name__.split(".")[-1])
def test_every_number_of_every_parameter_is_some_tensors(config):
    cfg = config.config().model
    own = [p for p in placements(cfg) if p.copy_of is None]
    assert len({p.name for p in own}) == len(own)
    specs = dict(params.paths(transformer.specs(cfg)))
    filled = dict.fromkeys(specs, 0)
    for place in own:
        box = place.index(0, place.shape[0])
        assert all(0 <= s.start < s.stop <= n for s, n in zip(box, specs[place.leaf].shape))
        assert math.prod(s.stop - s.start for s in box) == math.prod(place.shape)
        filled[place.leaf] += math.prod(place.shape)
    assert filled == {name: math.prod(spec.shape) for name, spec in specs.items()}


def test_no_two_tensors_share_a_number():
    cfg = tiny.config().model
    specs = dict(params.paths(transformer.specs(cfg)))
    seen = {name: np.zeros(spec.shape, np.int8) for name, spec in specs.items()}
    for place in placements(cfg):
        if place.copy_of is None:
            for start in range(0, place.shape[0], 3 * place.rows_together):
                stop = min(start + 3 * place.rows_together, place.shape[0])
                seen[place.leaf][place.index(start, stop)] += 1
    assert all((count == 1).all() for count in seen.values())


def test_v2_lite_has_q_proj_and_v2_the_two_of_the_query_latent():
    lite = {p.name for p in placements(deepseek_v2_lite.config().model)}
    v2 = {p.name for p in placements(deepseek_v2.config().model)}
    assert "model.layers.5.self_attn.q_proj.weight" in lite
    assert not any("q_a_" in name or "q_b_" in name for name in lite)
    assert {f"model.layers.5.self_attn.q_{x}_proj.weight" for x in "ab"} <= v2
    assert not any("e_score_correction_bias" in name for name in v2 | lite)


def test_mtp_modules_are_the_layers_after_the_last_and_repeat_embedding_and_head():
    copies = {p.name: p.copy_of for p in placements(tiny.config().model) if p.copy_of}
    assert copies == {
        "model.layers.4.embed_tokens.weight": "model.embed_tokens.weight",
        "model.layers.4.shared_head.head.weight": "lm_head.weight",
    }


def test_scales_of_an_edge_block_are_counted():
    assert hf_names.scale_shape((576, 7168)) == (5, 56)


def test_grouped_query_attention_has_no_released_form():
    cfg = ModelConfig(7, 8, 1, 1, 8, GQAConfig(2, 1, 4))
    with pytest.raises(UserError, match="GQAConfig has no released form"):
        list(placements(cfg))
