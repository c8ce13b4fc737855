"""A context beyond what a model was made for is said, with what would make it longer; a kernel that
a run was trained with may be missing where its model is used.
"""

import dataclasses

import pytest

from dsjax.config.load import load
from dsjax.config.machine import MachineConfig
from dsjax.config.model import RopeConfig, YarnConfig
from dsjax.config.stored import run_to_json
from dsjax.infer import Model, default_backend
from dsjax.infer.model import described
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


def test_a_kernel_of_the_machine_that_trained_is_taken_where_it_is(tmp_path):
    """A run that named one could not be generated from on a laptop."""
    for told, found in (("kernel", "auto"), ("blocks", "blocks")):
        trained = MachineConfig(attention=told, unroll=4)
        run_to_json(dataclasses.replace(load("tiny"), machine=trained), tmp_path / "config.json")
        assert described(tmp_path).machine == MachineConfig(attention=found, unroll=1)
    trained = MachineConfig(fp8_matmul="kernel")
    run_to_json(dataclasses.replace(load("tiny"), machine=trained), tmp_path / "config.json")
    assert described(tmp_path).machine.fp8_matmul == "auto"
