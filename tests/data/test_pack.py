"""Packing conserves tokens: every token of every document is a target exactly once, and FIM only
rearranges."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsjax.data import pack
from dsjax.data.tokenizers import tokenizer as tok
from dsjax.errors import UserError

END = 0
BPE = tok.train_bpe(["a few words\n"], 260)
DOCUMENTS = st.lists(st.lists(st.integers(1, 9), max_size=12), min_size=2, max_size=8)


def all_rows(rows):
    return [rows[i] for i in range(len(rows))]


def check_types(rows):
    for row in all_rows(rows):
        assert {k: (v.dtype, v.shape) for k, v in row.items()} == {
            "tokens": (np.dtype("int32"), (rows.length + 1,)),
            "segments": (np.dtype("int32"), (rows.length + 1,)),
            "weights": (np.dtype("float32"), (rows.length + 1,)),
        }


def targets(rows):
    """Every (input, target) pair that counts, in order."""
    return [
        (int(row["tokens"][i]), int(row["tokens"][i + 1]))
        for row in all_rows(rows)
        for i in range(rows.length)
        if row["weights"][i + 1] > 0
    ]


@settings(deadline=None)
@given(DOCUMENTS, st.integers(1, 17))
def test_concat_makes_every_token_a_target_exactly_once(documents, length):
    stream = pack.joined(documents, END)
    assert stream.tolist() == [END] + [t for d in documents for t in [*d, END]]
    rows = pack.concat(stream, length, END)
    check_types(rows)
    assert targets(rows) == list(pairwise(stream))
    for row in all_rows(rows)[:-1]:
        assert (row["segments"] == 1).all()
    last = all_rows(rows)[-1]
    assert (last["weights"][1:] == last["segments"][1:]).all()  # padding is 0 in both


@settings(deadline=None)
@given(DOCUMENTS, st.integers(1, 17))
def test_segments_have_the_same_tokens_and_stay_inside_documents(documents, length):
    stream = pack.joined(documents, END)
    rows, same = pack.segments(stream, length, END), pack.concat(stream, length, END)
    check_types(rows)
    for row, other in zip(all_rows(rows), all_rows(same), strict=True):
        assert (row["tokens"] == other["tokens"]).all()
        real = row["segments"] > 0
        assert (real == (other["segments"] > 0)).all()
        assert row["segments"][0] == 1
        steps = np.diff(row["segments"][real])
        assert (steps == (row["tokens"][real][:-1] == END)).all()  # next segment after each end
        counted = row["weights"][1:] > 0
        inside = real[1:] & (row["segments"][1:] == row["segments"][:-1])
        assert (counted == inside).all()
    assert len(targets(rows)) == len(stream) - 1 - len(documents)  # all but one a document


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(1, 9), min_size=2, max_size=8), min_size=1, max_size=12))
def test_whole_documents_stay_whole_and_keep_their_target_weights(documents):
    weights = [[(t % 3) / 2 for t in d] for d in documents]
    rows = pack.whole(documents, 7, weights=weights)
    check_types(rows)
    found = []
    for row in all_rows(rows):
        for segment in range(1, row["segments"].max() + 1):
            here = row["segments"] == segment
            found.append((tuple(row["tokens"][here]), tuple(row["weights"][here])))
        assert not row["weights"][row["segments"] == 0].any()
    expected = [(tuple(d), (0, *w[1:])) for d, w in zip(documents, weights, strict=True)]
    assert Counter(found) == Counter(expected)


@given(st.lists(st.integers(1, 10), min_size=1))
def test_best_fit_fills_no_bin_over_and_stays_within_its_bound(sizes):
    bins = pack.best_fit(sizes, 10)
    assert sorted(i for members in bins for i in members) == list(range(len(sizes)))
    assert all(sum(sizes[i] for i in members) <= 10 for members in bins)
    # Best fit decreasing needs at most 11/9 of the best number of bins + 1 (here in tenths).
    assert len(bins) <= 11 / 9 * max(-(-sum(sizes) // 10), sum(s > 5 for s in sizes)) + 4


def test_best_fit_prefers_the_fullest_bin():
    assert pack.best_fit([6, 5, 4, 3, 2], 10) == [[0, 2], [1, 3, 4]]


def test_fim_rearranges_documents_and_loses_no_token():
    rng = np.random.default_rng(1)
    documents = [rng.integers(10, 260, rng.integers(0, 30)) for _ in range(500)]
    begin, hole, end = BPE.fim_begin_id, BPE.fim_hole_id, BPE.fim_end_id
    for document, out in zip(documents, pack.fim(documents, BPE, rate=1.0), strict=True):
        assert out[0] == begin
        at_hole, at_end = int(np.flatnonzero(out == hole)[0]), int(np.flatnonzero(out == end)[0])
        prefix, suffix, middle = out[1:at_hole], out[at_hole + 1 : at_end], out[at_end + 1 :]
        assert np.concatenate([prefix, middle, suffix]).tolist() == document.tolist()


def test_fim_cuts_are_uniform_over_the_document():
    document = np.arange(10, 110)
    middles = [
        len(out) - 1 - np.flatnonzero(out == BPE.fim_end_id)[0]
        for out in pack.fim([document] * 4000, BPE, rate=1.0)
    ]
    # |a - b| of two uniform cuts on 0..100: mean 34, deviation 23.8; five errors of the mean
    assert abs(np.mean(middles) - 100 * 102 / 303) < 5 * 23.8 / 4000**0.5


def test_fim_takes_its_share_of_documents_and_follows_the_seed():
    documents = [np.arange(10, 14)] * 20_000
    out = list(pack.fim(documents, BPE, rate=0.1, seed=3))
    taken = np.array([len(d) == 7 for d in out])
    assert all(len(d) in (4, 7) for d in out)
    assert abs(taken.mean() - 0.1) < 5 * (0.1 * 0.9 / 20_000) ** 0.5  # five standard errors
    again = list(pack.fim(documents[:99], BPE, rate=0.1, seed=3))
    assert all((a == b).all() for a, b in zip(again, out[:99], strict=True))
    later = list(pack.fim(documents[40:99], BPE, rate=0.1, seed=3, first=40))
    assert all((a == b).all() for a, b in zip(later, out[40:99], strict=True))
    other = list(pack.fim(documents, BPE, rate=0.1, seed=4))
    assert [len(d) for d in other] != [len(d) for d in out]
    assert sum(len(d) for d in pack.fim(documents, BPE, rate=0)) == 80_000


def test_what_cannot_be_packed_is_refused():
    with pytest.raises(UserError, match="document 1 has 9 tokens"):
        pack.whole([[1, 2], [1] * 9], 7)
    with pytest.raises(UserError, match="holds no document"):
        pack.concat(np.array([0]), 4, END)
    with pytest.raises(ValueError, match="length=0"):
        pack.concat(np.arange(9), 0, END)
    bare = tok.train_bpe(["a few words\n"], 260, special=(tok.END,))
    with pytest.raises(UserError, match="needs a tokenizer with FIM tokens"):
        list(pack.fim([[1]], bare))
    assert next(pack.fim([[1]], bare, rate=0)).tolist() == [1]
