"""A curriculum changes how tokens are cut into rows and batches, never which tokens count."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsjax.config.run import SequenceStage, TrainConfig
from dsjax.data import curriculum, pack


def batch_of(rows):
    read = [rows[i] for i in range(len(rows))]
    return {name: np.stack([row[name] for row in read]) for name in read[0]}


def counted(batch):
    """(input, target, weight) of every target that weighs, in order."""
    inputs, outputs = batch["tokens"][:, :-1], batch["tokens"][:, 1:]
    weights = batch["weights"][:, 1:]
    where = weights > 0
    return np.stack([inputs[where], outputs[where], weights[where]], axis=1).tolist()


@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 9), max_size=9), min_size=2),
    st.sampled_from([1, 2, 3, 4, 6, 12]),
    st.booleans(),
)
def test_recutting_keeps_every_target_with_its_input(documents, length, is_crossing):
    cut = pack.concat if is_crossing else pack.segments
    batch = batch_of(cut(pack.joined(documents, 0), 12, 0))
    short = curriculum.recut(batch, length)
    n = len(batch["tokens"])
    assert short["tokens"].shape == (n * 12 // length, length + 1)
    assert counted(short) == counted(batch)
    segments = short["segments"]
    assert ((segments[:, 0] == 1) | (segments == 0).all(axis=1)).all()
    whole = batch["segments"]
    same = (whole[:, 1:] == whole[:, :-1]) & (whole[:, 1:] > 0)
    same_short = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
    assert (same_short.reshape(n, 12) == same).all()


def test_recutting_leaves_its_argument_alone_and_refuses_uneven_cuts():
    batch = batch_of(pack.concat(np.arange(25), 12, 0))
    before = {k: v.copy() for k, v in batch.items()}
    curriculum.recut(batch, 4)
    assert all((batch[k] == before[k]).all() for k in batch)
    with pytest.raises(ValueError, match=r"length=5 does not divide T=12; choose from \[1, 2, 3"):
        curriculum.recut(batch, 5)


def test_the_v3_ramp_grows_linearly_in_tokens_in_whole_multiples():
    ramp = curriculum.BatchRamp(3072, 15360, 469 * 10**9, 256)
    at = [curriculum.batch_size_at(share * 469 * 10**9 // 100, ramp) for share in range(120)]
    assert at[0] == 3072
    assert at[50] == (3072 + 15360) // 2
    assert at[99] < 15360 == at[100] == at[119]
    assert all(a <= b for a, b in pairwise(at))
    assert all(n % 256 == 0 for n in at)
    exact = [3072 + (15360 - 3072) * share / 100 for share in range(100)]
    assert all(0 <= e - n < 256 for e, n in zip(exact, at))


def test_no_ramp_is_the_end_size_and_bad_ramps_are_refused():
    assert curriculum.batch_size_at(0, curriculum.BatchRamp(8, 8, 0)) == 8
    with pytest.raises(ValueError, match="start <= end"):
        curriculum.BatchRamp(9, 8, 10)
    with pytest.raises(ValueError, match="multiple=3 does not divide"):
        curriculum.BatchRamp(6, 8, 10, 3)


def test_the_last_stage_begun_sets_the_length():
    stages = (SequenceStage(0, 64), SequenceStage(10, 128))
    assert [curriculum.length_at(s, stages, 256) for s in (0, 9, 10, 99)] == [64, 64, 128, 128]
    assert curriculum.length_at(3, (SequenceStage(5, 64),), 256) == 256
    assert curriculum.length_at(3, (), 256) == 256


def test_ramp_and_stages_may_be_shares_of_the_run():
    def train(ramp, half):
        return TrainConfig(steps=40, batch_size=8, seq_len=64, batch_size_start=2,
                           batch_size_ramp_steps=ramp, batch_size_multiple=2,
                           curriculum=(SequenceStage(0, 16), SequenceStage(half, 32)))

    shares, steps = train(0.25, 0.5), train(10, 20)
    for now in range(45):
        assert curriculum.rows_of(shares, now) == curriculum.rows_of(steps, now)
        assert curriculum.length_of(shares, now) == curriculum.length_of(steps, now)
    assert [curriculum.rows_of(shares, now) for now in (0, 5, 10)] == [2, 4, 8]
    assert [curriculum.length_of(shares, now) for now in (19, 20)] == [16, 32]


def test_tokens_are_the_sum_of_the_steps_batches():
    ramp = TrainConfig(steps=40, batch_size=8, seq_len=64, batch_size_start=2,
                       batch_size_ramp_steps=10)
    for steps in (0, 3, 10, 17):
        rows = sum(curriculum.rows_of(ramp, step) for step in range(steps))
        assert curriculum.tokens_after(ramp, steps) == rows * 64
    assert curriculum.tokens_after(TrainConfig(batch_size=3, seq_len=5), 7) == 105
