"""A run on eight devices, rows over all and experts over two, is the run on one: the same outputs
and rewards at first, the same numbers to rounding.
"""

import dataclasses

import pytest

from dsjax.config.parallel import ParallelConfig
from dsjax.report.metrics import read_metrics
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
