"""A context beyond what a model was made for is said, with what would make it longer; none other.
"""

import dataclasses

import pytest

from dsjax.config.model import RopeConfig, YarnConfig
from dsjax.infer import Model, default_backend
from dsjax.infer.reach import reach, remark
from tests import agreement

YARN = YarnConfig(factor=40.0, original_length=128)


def model(trained, yarn=None):
    cfg = dataclasses.replace(agreement.TINY, rope=RopeConfig(yarn=yarn))
    return Model(cfg, None, None, trained, default_backend(), None)  # type: ignore[arg-type]


@pytest.mark.parametrize(("trained", "yarn", "positions"), [
    (128, None, 128), (128, YARN, 5120), (1024, YARN, 5120), (8192, YARN, 8192),
])
def test_a_model_was_made_for_its_rows_or_what_yarn_stretches_to(trained, yarn, positions):
    made = model(trained, yarn)
    assert reach(made.cfg, trained) == positions
    assert remark(made, None) is None
    assert remark(made, positions) is None
    assert f"--context {positions + 1:,} is past" in remark(made, positions + 1)


def test_the_remark_has_the_cause_and_the_remedy():
    without = remark(model(128), 4096)
    assert "it has no YaRN (128 positions)" in without
    assert "--model.rope.yarn.factor 32" in without
    assert "--context 128" in without
    beyond = remark(model(1024, YARN), 10_000)
    assert "its YaRN stretches to (5,120 positions)" in beyond
    assert "--model.rope.yarn.factor 79" in beyond, "of its original 128"
