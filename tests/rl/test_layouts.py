"""A run on eight devices, rows over all and experts over two, is the run on one: the same outputs
and rewards at first, the same numbers to rounding.
"""

import dataclasses

import pytest

from dsjax.config.parallel import ParallelConfig
from dsjax.errors import UserError
from dsjax.report.metrics import read_metrics
from dsjax.rl import update, weights
from tests.rl import small

TOLERANCE = 2e-3  # two steps of AdamW, which makes of a gradient's rounding near 0 a step of 1e-3


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize(("layout", "fields"), [
    (ParallelConfig(data=4, expert=2), {}),
    (ParallelConfig(data=2, fsdp=2, expert=2), {}),
    (ParallelConfig(), {"engine": ParallelConfig(), "engine_apart": True}),
    (ParallelConfig(data=2), {"engine": ParallelConfig(data=2, expert=2), "engine_apart": True}),
    (ParallelConfig(pipe=2, schedule="dualpipe", expert=2),
     {"engine": ParallelConfig(data=2, expert=2)}),
], ids=str)
def test_rollouts_and_rewards_are_those_of_one_device(layout, fields, whole, tmp_path):
    run = dataclasses.replace(small.with_rl(steps=2, **fields), parallel=layout,
                              init_from=str(whole / "base"))
    if layout.pipe > 1:
        run = dataclasses.replace(run, train=dataclasses.replace(run.train, microbatches=4))
    small.teach(run, tmp_path / "meshed")
    for step in (1, 2):
        name = f"samples/step-{step:06d}.jsonl"
        assert (tmp_path / "meshed" / name).read_text() == (whole / name).read_text()
    for kind in ("train", "exam"):
        meshed = read_metrics(tmp_path / "meshed" / "metrics.jsonl", kind)
        alone = read_metrics(whole / "metrics.jsonl", kind)[: len(meshed)]
        for one, other in zip(meshed[:2] if kind == "train" else meshed[:1], alone):
            for name in ("reward", "constant_groups", "truncated", "length", "entropy", "loss",
                         "exam_sampled", "exam_greedy", "exam_length"):
                if name in one:
                    assert one[name] == pytest.approx(other[name], rel=TOLERANCE, abs=1e-5), name
        if kind == "train":
            assert all(event["equal_routes"] == 1 for event in meshed)


@pytest.mark.parametrize(("layout", "fields", "said"), [
    (ParallelConfig(), {}, "the trainer's layout and devices"),
    (ParallelConfig(), {"engine": ParallelConfig(data=2)},
     "data 2 x fsdp 1 x expert 1, on the trainer's devices"),
    (ParallelConfig(), {"engine_apart": True},
     "data 1 x fsdp 1 x expert 1, on devices of its own"),
    (ParallelConfig(data=4), {"engine": ParallelConfig(expert=2), "engine_apart": True},
     "data 1 x fsdp 1 x expert 2, on devices of its own"),
], ids=str)
def test_the_header_says_the_engines_devices(layout, fields, said):
    run = update.training_run(dataclasses.replace(small.with_rl(**fields), parallel=layout))
    assert str(weights.open_places(run)) == said


@pytest.mark.parametrize(("layout", "fields", "said"), [
    (ParallelConfig(data=4), {"engine": ParallelConfig(data=8), "engine_apart": True},
     r"needs 8 devices beside the trainer's 4, and there are 8.*--rl\.engine-apart"),
    (ParallelConfig(), {"engine": ParallelConfig(data=16)},
     r"needs 16 devices, and there are 8.*--rl\.engine\.data"),
    (ParallelConfig(), {"engine": ParallelConfig(expert=4)},
     r"6 experts do not divide over --rl\.engine\.expert 4"),
], ids=range(3))
def test_an_engine_that_finds_no_place_is_refused_by_its_own_flags(layout, fields, said):
    run = update.training_run(dataclasses.replace(small.with_rl(**fields), parallel=layout))
    with pytest.raises(UserError, match=said):
        weights.open_places(run)

