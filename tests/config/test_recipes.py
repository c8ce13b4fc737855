"""The recipes in configs/ are the reports': tokens, their dates, and one rule for YaRN."""

import dataclasses

import pytest

from dsjax.config import load
from dsjax.data.curriculum import BatchRamp, batch_size_at
from dsjax.model.count import count
from dsjax.ops import rope

V3 = load.load("deepseek_v3")
ROWS = 15360 * 4096  # tokens of a step after the ramp


def tokens_after(run, steps):
    """Tokens read in the first `steps` steps, as the loop draws them."""
    train = run.train
    ramp = BatchRamp(train.batch_size_start, train.batch_size, train.batch_size_ramp_steps,
                     train.batch_size_multiple)
    in_ramp = min(steps, train.batch_size_ramp_steps)
    rows = sum(batch_size_at(step, ramp) for step in range(in_ramp))
    return (rows + (steps - in_ramp) * train.batch_size) * train.seq_len


def test_v3_reads_its_tokens_and_ramps_over_the_first_469_billion():
    # The five lengths are whole steps: each is off by at most half a step of its own size.
    assert tokens_after(V3, V3.train.steps) == pytest.approx(14.8e12, abs=5 * ROWS / 2)
    assert tokens_after(V3, V3.train.batch_size_ramp_steps) == pytest.approx(469e9, abs=ROWS)
    assert V3.train.batch_size_ramp_steps == 14_909
    assert V3.train.steps == 242_694


def test_v3_changes_its_rate_and_weights_at_the_tokens_of_the_report():
    rate, loss, steps = V3.learning_rate, V3.loss, V3.train.steps
    ends = [rate.warmup_steps, rate.constant_steps, rate.cosine_steps, rate.low_steps]
    ends = [sum(ends[: i + 1]) for i in range(4)]
    assert ends[0] == 2000
    for end, tokens in zip(ends[1:], (10e12, 14.3e12, 14.633e12), strict=True):
        assert tokens_after(V3, end) == pytest.approx(tokens, abs=2 * ROWS)
    assert ends[3] + rate.last_steps == steps
    assert loss.mtp_late_from * steps == pytest.approx(ends[1])
    assert loss.bias_until * steps == pytest.approx(ends[2])


@pytest.mark.parametrize("name", [name for name in load.names() if name != "tiny_long"])
def test_pre_training_has_no_yarn(name):
    assert load.load(name).model.rope.yarn is None


def test_the_extension_is_the_reports_at_a_thirty_second_of_its_lengths():
    run, short = load.load("tiny_long"), load.load("tiny")
    yarn, page = run.model.rope.yarn, (load.FOLDER / "tiny_long.py").read_text()
    assert (yarn.factor, yarn.beta_fast, yarn.beta_slow, yarn.mscale) == (40, 32, 1, 1)
    assert [32 * length for length in (yarn.original_length, run.train.seq_len, 4096)] == [
        4096, 32_768, 131_072]
    assert "--train.seq-len 4096 --train.batch-size 2 " in page, "the second phase"
    assert run.train.batch_size * run.train.seq_len == 2 * 4096, "as many tokens a step"
    assert yarn.factor * yarn.original_length >= 4096, "its stretch has room for the last phase"
    assert run.learning_rate.peak == run.learning_rate.last == short.learning_rate.last
    assert dataclasses.replace(run.model, rope=short.model.rope) == short.model
    slower = rope.frequencies(short.model.rope, 16) / rope.frequencies(run.model.rope, 16)
    assert slower[0] == 1, "the fastest pair stays"
    assert all(1 < of < 40 for of in slower[1:3])
    assert slower[3:] == pytest.approx([40] * 5)


def test_small_has_the_sizes_its_page_says():
    page = (load.FOLDER / "small.py").read_text()
    sizes = count(load.load("small").model)
    assert f"{sizes.params_total:,}" in page
    assert f"{sizes.params_mtp:,}" in page
