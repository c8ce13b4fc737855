"""Rotation turns adjacent pairs by position times frequency, and YaRN's frequencies and two scales
are the reference's, which holds the figures of the released models.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsjax.config.model import RopeConfig, YarnConfig
from dsjax.ops import rope
from tests.agreement import MLA, TINY, YARN, close, reference_config
from tests.reference import attention

RELEASED = YarnConfig(factor=40.0, original_length=4096, mscale=1.0, mscale_all_dim=1.0)


def as_dict(yarn):
    return None if yarn is None else dataclasses.asdict(yarn)


@pytest.mark.parametrize(
    "yarn", [None, RELEASED, dataclasses.replace(RELEASED, mscale=0.707), YARN.yarn]
)
@pytest.mark.parametrize("dim", [4, 6, 64])
def test_frequencies_and_scales_agree_with_the_reference(yarn, dim):
    cfg = RopeConfig(theta=10000.0, yarn=yarn)
    expected = attention.rope_frequencies(dim, 10000.0, as_dict(yarn))
    close(rope.frequencies(cfg, dim), expected, 1e-14)
    assert rope.softmax_scale(cfg, 192) == pytest.approx(
        attention.softmax_scale(192, as_dict(yarn)), rel=1e-14
    )
    angles = rope.angles(cfg, dim, jnp.zeros((1,), jnp.int32))
    close(angles.cos, np.full((1, dim // 2), attention.rotary_magnitude(as_dict(yarn))), 1e-6)


def test_released_softmax_scales_are_those_of_the_reports():
    assert rope.softmax_scale(RopeConfig(), 192) == pytest.approx(192**-0.5)
    assert rope.softmax_scale(RopeConfig(yarn=RELEASED), 192) == pytest.approx(0.1352338, abs=5e-8)
    lite = dataclasses.replace(RELEASED, mscale=0.707, mscale_all_dim=0.707)
    assert rope.softmax_scale(RopeConfig(yarn=lite), 192) == pytest.approx(0.1147214, abs=5e-8)


@pytest.mark.parametrize("cfg", [RopeConfig(), YARN])
def test_rotation_agrees_with_the_reference_with_and_without_heads(cfg):
    rng = np.random.default_rng(0)
    x, positions = rng.standard_normal((2, 5, 3, 4)), np.array([[0, 1, 2, 7, 30], [4, 3, 9, 1, 0]])
    reference = reference_config(dataclasses.replace(TINY, attention=MLA, rope=cfg))
    with jax.enable_x64(True):
        by = rope.angles(cfg, 4, jnp.asarray(positions))
        lifted = rope.Angles(by.cos[:, :, None], by.sin[:, :, None])
        turned = rope.rotate(jnp.asarray(x), lifted)
        first_head = rope.rotate(jnp.asarray(x[:, :, 0]), by)
    for b in range(2):
        for h in range(3):
            close(turned[b, :, h], attention.rope_all(x[b, :, h], positions[b], reference))
    close(first_head, turned[:, :, 0])


def test_scores_depend_on_the_difference_of_positions_alone():
    rng = np.random.default_rng(3)
    q, k = rng.standard_normal((2, 8))
    with jax.enable_x64(True):
        def score(s, t):
            by = rope.angles(RopeConfig(), 8, jnp.array([s, t]))
            both = rope.rotate(jnp.asarray(np.stack([q, k])), by)
            return float(both[0] @ both[1])

        assert score(9, 4) == pytest.approx(score(105, 100), rel=1e-12)
        assert abs(score(9, 4) - score(4, 9)) > 1e-3
