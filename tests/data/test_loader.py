"""The stream of rows depends on the data and the seed only: not on processes, batch sizes,
prefetching or where it was interrupted."""

import json
from collections import Counter

import grain  # noqa: F401  (slow to import: no test is charged for it)
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsjax.data import loader, pack
from dsjax.data.tokenizers import tokenizer as tok
from dsjax.errors import UserError

ROWS = pack.concat(np.arange(1000) % 251, 7, 0)  # 143 rows, the last one padded


def stream(**options):
    return loader.RowStream(ROWS, **{"seed": 5, "is_prefetching": False, **options})


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def joined(batches):
    return {k: np.concatenate([b[k] for b in batches]) for k in batches[0]}


@settings(deadline=None, max_examples=15)
@given(
    st.lists(st.integers(1, 20), min_size=1, max_size=4),
    st.lists(st.integers(1, 20), min_size=1, max_size=3),
    st.booleans(),
)
def test_a_restored_stream_goes_on_exactly(before, after, is_prefetching):
    first = stream(is_prefetching=is_prefetching)
    for n in before:
        first.next_batch(n)
    saved = json.loads(json.dumps(first.state()))
    expected = [first.next_batch(n) for n in after]
    second = stream(is_prefetching=is_prefetching)
    second.next_batch(3)
    second.restore(saved)
    assert all(same(a, second.next_batch(n)) for a, n in zip(expected, after, strict=True))
    assert first.state() == second.state()
    first.close()
    second.close()


@settings(deadline=None, max_examples=25)
@given(st.sampled_from([1, 2, 3, 4]), st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_the_global_batch_is_the_same_on_any_number_of_processes(hosts, sizes):
    one = stream()
    parts = [stream(host=h, hosts=hosts, is_prefetching=True) for h in range(hosts)]
    for n in sizes:
        whole = joined([part.next_batch(n) for part in parts])
        assert same(whole, one.next_batch(n * hosts))
    assert all(part.state() == one.state() for part in parts)
    for part in parts:
        part.close()


def test_batch_sizes_do_not_change_the_sequence_of_rows():
    a, b = stream(), stream()
    assert same(joined([a.next_batch(n) for n in (1, 50, 7, 142)]), b.next_batch(200))


def test_every_row_comes_once_an_epoch_in_an_order_that_changes():
    rows = stream()
    epochs = [[tuple(t) for t in rows.next_batch(143)["tokens"]] for _ in range(3)]
    everything = Counter(tuple(ROWS[i]["tokens"]) for i in range(143))
    assert all(Counter(epoch) == everything for epoch in epochs)
    in_order = [tuple(ROWS[i]["tokens"]) for i in range(143)]
    assert len({tuple(order) for order in [*epochs, in_order]}) == 4
    other = [tuple(t) for t in stream(seed=6).next_batch(143)["tokens"]]
    assert Counter(other) == everything
    assert other != epochs[0]


def test_a_state_of_other_data_is_refused():
    saved = stream().state()
    with pytest.raises(UserError, match="saved data position is for seed=5, this run has seed=6"):
        stream(seed=6).restore(saved)
    with pytest.raises(UserError, match="rows=143"):
        loader.RowStream(pack.concat(np.arange(99), 7, 0), seed=5).restore(saved)


def test_wrong_hosts_and_sizes_are_refused():
    with pytest.raises(ValueError, match="host=2"):
        stream(host=2, hosts=2)
    with pytest.raises(ValueError, match="at least 1"):
        stream().next_batch(0)
    with pytest.raises(UserError, match="no rows"):
        loader.RowStream(pack.ArrayRows(*[np.zeros((0, 8))] * 3))


@pytest.mark.parametrize("hosts", [1, 2, 3])
@pytest.mark.parametrize("cut", [pack.concat, pack.segments])
def test_heldout_batches_count_every_byte_of_text_once(hosts, cut):
    texts = ["na\u00efve text, \u4f60\u597d\n" * 9, "second work\n" * 5]
    bpe = tok.train_bpe(texts, 290)
    ids = bpe.encode_batch(texts)
    sizes = tok.token_bytes(bpe)
    rows = cut(pack.joined(ids, bpe.end_id), 5, bpe.end_id)
    per_host = [
        list(loader.heldout_batches(rows, 4, sizes, host=h, hosts=hosts)) for h in range(hosts)
    ]
    assert len({len(batches) for batches in per_host}) == 1
    assert all(b["tokens"].shape == (4, 6) for batches in per_host for b, _ in batches)
    total = sum(size for batches in per_host for _, size in batches)
    unseen = 0 if cut is pack.concat else sum(sizes[d[0]] for d in ids)
    assert total == sum(len(t.encode()) for t in texts) - unseen
    targets = sum(b["weights"].sum() for batches in per_host for b, _ in batches)
    assert targets == sum(rows[i]["weights"].sum() for i in range(len(rows)))
    again = list(loader.heldout_batches(rows, 4, sizes, hosts=hosts, most=99))
    assert all(same(a, b) for (a, _), (b, _) in zip(again, per_host[0], strict=True))


@pytest.mark.parametrize(("most", "middles"), [(1, [18]), (3, [6, 18, 30]), (36, range(36))])
def test_a_part_of_the_heldout_batches_is_spread_over_all(most, middles):
    sizes = np.ones(251, np.int64)
    every = list(loader.heldout_batches(ROWS, 4, sizes))
    assert len(every) == 36
    part = list(loader.heldout_batches(ROWS, 4, sizes, most=most))
    assert all(same(a, every[i][0]) for (a, _), i in zip(part, middles, strict=True))
