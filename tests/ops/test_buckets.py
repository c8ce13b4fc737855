"""Every number gets its place among those of its bucket, by sorting as by counting."""

import jax
import numpy as np
import pytest

from dsjax.ops import buckets

COUNT = 7


def drawn(key):
    """Numbers from -1 to COUNT, the first and last in no bucket; bucket 3 is empty."""
    bucket = np.asarray(jax.random.randint(key, (301,), -1, COUNT + 1))
    return np.where(bucket == 3, 4, bucket)


@pytest.mark.parametrize("form", [buckets.places, buckets.places_by_sorting,
                                  buckets.places_by_counting])
def test_places_count_the_earlier_ones_of_a_bucket(form, key):
    bucket = drawn(key)
    found = np.asarray(jax.jit(form, static_argnums=1)(bucket, COUNT))
    for i, b in enumerate(bucket):
        if 0 <= b < COUNT:
            assert found[i] == (bucket[:i] == b).sum()


@pytest.mark.parametrize("form", [buckets.sizes, buckets.sizes_by_adding,
                                  buckets.sizes_by_comparing])
def test_sizes_leave_out_what_is_in_no_bucket(form, key):
    bucket = drawn(key)
    expected = [(bucket == b).sum() for b in range(COUNT)]
    assert jax.jit(form, static_argnums=1)(bucket, COUNT).tolist() == expected


@pytest.mark.parametrize("length", [1, 127, 128, 129, 400, 128 * 128 + 3])
def test_running_adds_up_over_stretches(length, key):
    seed = jax.random.key_data(key).tolist()
    a = np.random.default_rng(seed).integers(-5, 6, (3, length), np.int32)
    assert jax.jit(buckets.running)(a).tolist() == np.cumsum(a, axis=1).tolist()
