"""The longest common subsequence is that of the textbook's table, and windows miss no copy."""

import numpy as np
import pytest

from dsjax.evaluate.audit import grams, near


def table(a, b):
    """Length of the longest common subsequence, by dynamic programming."""
    row = [0] * (len(b) + 1)
    for one in a:
        before, row = row, [0]
        for j, other in enumerate(b):
            row.append(before[j] + 1 if one == other else max(before[j + 1], row[j]))
    return row[-1]


def test_the_longest_common_subsequence_is_the_tables_and_its_stretch_is_tight():
    draw = np.random.default_rng(0)
    for _ in range(200):
        a = draw.integers(1, 8, draw.integers(1, 90)).tolist()
        b = draw.integers(0, 8, draw.integers(1, 60)).tolist()
        length, first, last = near.longest_common(near.masks(a), len(a), b)
        assert length == table(a, b)
        if length:
            assert table(a, b[first : last + 1]) == length
            assert table(a, b[first + 1 : last + 1]) < length
            assert table(a, b[first:last]) < length


def finder(texts, words, similarity=0.75):
    ids = np.concatenate([np.append(text, 0) for text in texts]).astype(np.uint32)
    stops = np.cumsum([len(text) + 1 for text in texts])
    spans = [(int(stop) - 1 - len(text), int(stop) - 1)
             for text, stop in zip(texts, stops, strict=True)]
    hashes = grams.Hashes(words)
    made = near.Finder(ids, spans, hashes.of(ids, [near.SHINGLE])[0], similarity)
    return made, lambda stream: made.find(stream, hashes.of(stream, [near.SHINGLE])[0])


@pytest.mark.parametrize("length", [12, 19, 60, 256])
def test_a_copy_is_found_with_its_similarity_and_place(length):
    draw = np.random.default_rng(length)
    texts = [draw.integers(1, 5000, length) for _ in range(30)]
    made, find = finder(texts, 9000)
    assert made.longest == length
    around = draw.integers(5001, 9001, (2, 700))
    changed = texts[7].copy()
    changed[length // 4] = 8999  # one word exchanged
    stream = np.concatenate([around[0], changed, around[1]]).astype(np.uint32)
    found = find(stream)
    assert {copy.text for copy in found} == {7}
    best = max(found, key=lambda copy: copy.similarity)
    assert best.similarity == (length - 1) / length
    assert (best.first, best.last) == (700, 700 + length - 1)


def test_what_is_less_like_a_text_than_asked_for_is_none():
    draw = np.random.default_rng(3)
    texts = [draw.integers(1, 5000, 40)]
    half = np.concatenate([texts[0][:28], draw.integers(5001, 9001, 300)]).astype(np.uint32)
    assert finder(texts, 9000, 0.75)[1](half) == []
    assert [copy.similarity for copy in finder(texts, 9000, 0.65)[1](half)] == [0.7]


def test_long_fields_are_cut_and_short_ones_left_out():
    assert list(near.cut(10, 10 + near.LEAST - 1)) == []
    assert list(near.cut(10, 10 + near.LEAST)) == [(10, 10 + near.LEAST)]
    parts = list(near.cut(0, 1000))
    assert [a for a, _ in parts[1:]] == [b for _, b in parts[:-1]]
    assert parts[-1][1] == 1000
    assert max(b - a for a, b in parts) <= near.MOST
