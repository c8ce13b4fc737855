"""A step's estimate follows from its parts: pipelines, links, layouts."""

import dataclasses

import pytest

from dsjax.config.load import load
from dsjax.config.run import with_fields
from dsjax.errors import UserError
from dsjax.plan.cost import efficiency, site, stage, step, work
from dsjax.plan.cost.efficiency import STACKS

V3 = with_fields(load("deepseek_v3"), train={
    "batch_size_start": None, "batch_size_ramp_steps": 0, "microbatches": 120},
    parallel={"pipe": 16, "expert": 64, "expert_nodes": 8, "data": 2, "schedule": "dualpipe"})
H800 = site.parse("h800:2048")


def test_v3_as_published_is_predicted_within_two_percent_of_its_step_and_its_day():
    found = step.estimate(V3, H800, STACKS["deepseek"])
    assert found.step == pytest.approx(19.926, rel=0.02)  # Insights into DeepSeek-V3, Table 4
    assert found.tokens / found.step * 86400 == pytest.approx(272.8e9, rel=0.02)
    assert found.optimizer == pytest.approx(0.29, abs=0.15)
    assert found.step == pytest.approx(
        found.products + found.core + found.memory + found.again + found.overhead + found.links
        + found.bubble + found.optimizer)


@pytest.mark.parametrize("schedule", ["1f1b", "interleaved", "zb-h1", "zb-v", "dualpipe"])
def test_the_closed_form_of_a_bubble_is_near_its_simulation(schedule):
    run = with_fields(V3, parallel={"pipe": 8, "data": 4, "schedule": schedule},
                      train={"batch_size": 64 * 256, "microbatches": 64})
    stack = STACKS["megatron"]
    exact, quick = (step.estimate(run, H800, stack, is_simulated=flag) for flag in (True, False))
    assert quick.step == pytest.approx(exact.step, rel=0.06)  # it holds for B = F, and B is 1.2 F


def test_many_microbatches_are_what_a_few_more_add():
    few = with_fields(V3, train={"batch_size": 96 * 128, "microbatches": 96})
    many = with_fields(V3, train={"batch_size": 192 * 128, "microbatches": 192})
    short, long = (step.estimate(run, H800, STACKS["deepseek"]) for run in (few, many))
    assert long.bubble == pytest.approx(short.bubble, rel=1.0)
    rate = 2 * (short.step - short.bubble - short.optimizer)
    assert long.step - long.bubble - long.optimizer == pytest.approx(rate, rel=1e-9)


def test_exchanges_are_hidden_by_pairs_and_count_where_they_are_not():
    alone = with_fields(V3, parallel={"schedule": "zb-v"})
    paired, open_ = (step.estimate(run, H800, STACKS["deepseek"]) for run in (V3, alone))
    assert open_.step > 1.15 * paired.step
    hiding = dataclasses.replace(STACKS["deepseek"], is_hidden=True)
    assert step.estimate(alone, H800, hiding).step < paired.step


def test_recomputation_and_wide_operands_cost_and_recomputed_work_is_not_useful():
    base = step.estimate(V3, H800, STACKS["deepseek"])
    full = step.estimate(with_fields(V3, machine={"remat": "full"}), H800, STACKS["deepseek"])
    wide = step.estimate(with_fields(V3, precision={"matmul": "bf16"}), H800, STACKS["deepseek"])
    assert full.flops == wide.flops == base.flops
    assert full.again > 5 * base.again
    product = 3 * sum(layer.product for layer in work.of(V3.model, 4096, 1).layers)
    codes = product * base.tokens / 2048 / (H800.chip.fp8 * efficiency.PRODUCT.value)
    assert wide.products - base.products == pytest.approx(codes)  # twice the time, but of wide ones


def test_stages_are_contiguous_and_the_longest_is_shortest():
    whole = work.of(V3.model, 4096, 1)
    stages = stage.cut(whole, 16)
    assert [layer for stage in stages for layer in stage] == [*whole.layers, None]
    assert max(len(stage) for stage in stages) <= 5
    with pytest.raises(UserError, match="62 layers do not fill 64 stages"):
        stage.cut(whole, 64)


def test_fsdp_waits_for_its_gathers_where_rows_are_few():
    run = with_fields(V3, parallel={"pipe": 1, "data": 1, "fsdp": 2048, "expert": 1,
                                    "expert_nodes": 1, "schedule": "1f1b"},
                      train={"batch_size": 2048, "microbatches": 1}, precision={"matmul": "bf16"})
    short = step.estimate(run, H800, STACKS["maxtext"])
    assert short.links > 0.5 * short.step
    long = step.estimate(with_fields(run, train={"batch_size": 2048 * 64}), H800,
                         STACKS["maxtext"])
    assert long.links < 0.1 * long.step


def test_float32_and_unknown_stacks_are_refused():
    with pytest.raises(UserError, match="float32 products have no rate"):
        step.estimate(with_fields(V3, precision={"matmul": "fp32"}), H800, STACKS["deepseek"])
    with pytest.raises(UserError, match="no stack 'megatorn', did you mean megatron"):
        efficiency.stack("megatorn", H800)
    assert efficiency.stack(None, site.parse("v5p:8")).name == "maxtext"
    assert all(share.source for share in efficiency.SHARES.values())
