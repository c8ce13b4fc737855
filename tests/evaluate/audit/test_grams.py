"""The index finds every stretch of words that it was given, and no other, whatever hashes do."""

import numpy as np
import pytest

from dsjax.evaluate.audit import grams


def texts(draw, words, count, longest):
    """Random texts laid out with a 0 behind each."""
    rows = [np.append(draw.integers(1, words + 1, draw.integers(0, longest)), 0)
            for _ in range(count)]
    return np.concatenate([*rows, np.zeros(1)]).astype(np.uint32)


def stretches(ids, n):
    """(place, words) of every stretch without a 0, by a loop."""
    found = [(i, tuple(ids[i : i + n].tolist())) for i in range(len(ids) - n + 1)]
    return [(i, stretch) for i, stretch in found if 0 not in stretch]


@pytest.mark.parametrize("bits", [64, 12, 3])
@pytest.mark.parametrize(("n", "words"), [(1, 5), (3, 4), (13, 2)])
def test_the_index_equals_a_loop_over_sets_though_hashes_collide(n, words, bits):
    draw = np.random.default_rng(n * 100 + bits)
    text = texts(draw, words, 40, 40)
    hashes = grams.Hashes(words, bits)
    index = grams.index(text, n, hashes)
    known = stretches(text, n)
    assert len(index) == len({stretch for _, stretch in known})
    for g in range(len(index)):
        own = {tuple(text[p : p + n].tolist())
               for p in index.places[index.starts[g] : index.starts[g + 1]]}
        assert own == {tuple(text[index.at[g] : index.at[g] + n].tolist())}
    ids = draw.integers(0, words + 1, 3000).astype(np.uint32)
    ids[1000:1400] = text[100:500]
    at, number = index.find(ids, hashes.of(ids, [n])[0])
    wanted = {stretch for _, stretch in known}
    assert at.tolist() == [i for i, stretch in stretches(ids, n) if stretch in wanted]
    assert len(at), "the loop finds some"
    for a, g in zip(at, number, strict=True):
        assert (text[index.at[g] : index.at[g] + n] == ids[a : a + n]).all()


def test_a_stretch_has_one_hash_wherever_it_stands():
    hashes = grams.Hashes(1000)
    draw = np.random.default_rng(0)
    stretch = draw.integers(0, 1001, 13)
    ids = draw.integers(0, 1001, 5000)
    for at in (0, 700, 4987):
        ids[at : at + 13] = stretch
    found = hashes.of(ids, [13, 5])
    assert found[0][0] == found[0][700] == found[0][4987]
    assert len(np.unique(found[0])) == len(found[0]) - 2, "and others have others"
    assert [len(one) for one in found] == [4988, 4996]


def test_the_sieve_lets_all_of_its_hashes_pass_and_few_others():
    draw = np.random.default_rng(1)
    own, others = draw.integers(0, 2**64, (2, 20_000), np.uint64)
    sieve = grams.Sieve.of(own)
    assert sieve.passes(own).all()
    assert sieve.passes(others).mean() < 1 / 8


def test_an_index_of_nothing_finds_nothing():
    hashes = grams.Hashes(3)
    index = grams.index(np.array([1, 2, 0], np.uint32), 13, hashes)
    ids = np.ones(30, np.uint32)
    assert len(index) == 0
    assert len(index.find(ids, hashes.of(ids, [13])[0])[0]) == 0
