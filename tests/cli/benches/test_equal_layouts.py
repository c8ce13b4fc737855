"""Loss, gradients, biases and metrics of a step are one device's on every layout of devices.

A sample of what `dsjax bench layouts` compares in full. What it defends against: a bias moved by
each microbatch or device on its own, balance losses scaled by the number of shards, multi-token
losses averaged over shards with unequal numbers of targets.
"""

import dataclasses

import jax
import numpy as np
import pytest

from dsjax.cli.benches import equal_layouts
from dsjax.cli.benches.equal_layouts import KINDS, Stepper
from dsjax.config.parallel import ParallelConfig
from dsjax.config.run import PrecisionConfig
from dsjax.model import loss as losses
from dsjax.train import sharding, state

SAMPLE = [
    (ParallelConfig(data=2, fsdp=2, expert=2), 2),
    pytest.param(ParallelConfig(fsdp=2, expert=4, expert_nodes=2, capacity_factor=0.6), 1,
                 marks=pytest.mark.exhaustive),
    pytest.param(ParallelConfig(data=4, expert=2, use_zero=False), 4,
                 marks=pytest.mark.exhaustive),
    pytest.param(ParallelConfig(data=2, expert=4, expert_nodes=2, capacity_factor=0.6,
                                interleave=True), 2, marks=pytest.mark.exhaustive),
]
ONE_LAYER = dataclasses.replace(equal_layouts.MODEL, layers=1, dense_layers=0, mtp_depth=0)
EPS = float(np.finfo(np.float32).eps)


@pytest.fixture(scope="module")
def alone():
    step = Stepper(ParallelConfig())
    return {kind: step.take(kind) for kind in KINDS}


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "microbatches"), SAMPLE, ids=str)
def test_a_step_is_the_same_on_every_layout(layout, microbatches, alone):
    step = Stepper(layout, microbatches)
    for kind in KINDS:
        found = equal_layouts.compare(layout, microbatches, kind, step, alone[kind])
        # Sums of n terms in another order differ by about sqrt(n) roundings: n is some 400
        # positions for losses and metrics. A gradient's leaf ends a chain of a dozen such sums,
        # whose errors add up in squares.
        assert found.loss <= 20 * EPS
        assert found.parts <= 20 * EPS
        assert found.metrics <= 20 * EPS
        assert found.bias <= EPS
        assert found.gradients <= 12**0.5 * 20 * EPS
        if layout.capacity_factor < 1:
            assert found.extra_rounds > 0


@pytest.mark.slow
@pytest.mark.exhaustive  # tests/parallel/test_mesh_backend.py holds products and sums in FP8
@pytest.mark.parametrize(("precision", "model"), [
    ("bf16", equal_layouts.MODEL),
    ("fp8", equal_layouts.MODEL),
    ("fp8", ONE_LAYER),
], ids=["bf16", "fp8", "fp8, one layer"])
def test_low_precision_and_recomputation_run_on_a_mesh(precision, model):
    base = dataclasses.replace(
        equal_layouts.RUN,
        model=model,
        precision=PrecisionConfig(precision),
        machine=dataclasses.replace(equal_layouts.RUN.machine, remat="v3"),
    )
    layout = ParallelConfig(data=2, fsdp=2, expert=2, interleave=precision == "fp8")
    alone, many = (Stepper(where, 1, base).take("packed") for where in (ParallelConfig(), layout))
    # Sums travel in bfloat16, 2^-8 off, and are added to a residual stream of many such terms;
    # gradients in E4M3 are quantized once more on the way.
    assert many[1].loss == pytest.approx(alone[1].loss, rel=2.0**-8)
    assert many[1].next_token == pytest.approx(alone[1].next_token, rel=2.0**-8)
    assert many[1].grad_norm == pytest.approx(alone[1].grad_norm, rel=0.05)


def test_a_bias_moved_by_part_of_a_batch_would_be_seen(alone):
    whole = np.asarray(alone["packed"][1].loads)
    rows = equal_layouts.rows_of("packed")
    is_kept = np.arange(equal_layouts.ROWS)[:, None] < 16
    half = {name: np.where(is_kept, a, 0) for name, a in rows.items()}
    loads = np.asarray(Stepper(ParallelConfig()).step(half)[1].loads)
    assert (losses.bias_step(loads, 1.0) != losses.bias_step(whole, 1.0)).any()


def test_there_are_ten_ways_to_lay_eight_devices():
    ways = list(equal_layouts.factorizations(8))
    assert len(ways) == len(set(ways)) == 10
    assert all(layout.devices == 8 for layout in ways)


def test_rows_hold_unequal_numbers_of_targets_on_every_device():
    for kind in KINDS:
        rows = equal_layouts.rows_of(kind)
        batch = losses.from_rows({name: jax.numpy.asarray(a) for name, a in rows.items()})
        for ahead in (1, 2):
            each = np.asarray(losses.target_weights(batch, ahead)).reshape(8, -1).sum(1)
            assert len(set(each)) > 3


def test_parameters_are_born_where_they_rest_with_the_numbers_of_one_device():
    run = equal_layouts.configured(ParallelConfig(data=2, fsdp=2, expert=2), 1)
    mesh = sharding.open_mesh(run)
    born = sharding.init(run, mesh)
    jax.tree.map(np.testing.assert_array_equal, born, sharding.init(equal_layouts.RUN, None))
    assert born.params.embed.addressable_shards[0].data.shape == (60, 24 // 8)
    assert born.opt.nu.moe.ffn.experts.w_down.addressable_shards[0].data.shape == (1, 8, 8, 24 // 4)
    whole = sum(a.nbytes for a in jax.tree.leaves(born))
    here = sum(a.addressable_shards[0].data.nbytes for a in jax.tree.leaves(born))
    assert here < 1.2 * whole / 8


def test_a_run_off_its_layout_is_what_it_was_without_one():
    run = equal_layouts.RUN
    assert sharding.open_mesh(run) is None
    assert sharding.abstract(run, None) == state.abstract(run)
    moved = dataclasses.replace(run, parallel=ParallelConfig(data=8))
    assert sharding.open_mesh(moved).size == 8
