"""A slot holds the expert that the table says, and the device never more than was asked for."""

import gc
import threading
import time

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsjax.errors import UserError
from dsjax.infer.offload.cache import Counts, Room, as_pool
from dsjax.infer.offload.store import Store
from dsjax.numerics import gemm
from dsjax.numerics.precision import BF16, FP32
from tests.infer.offload import models

LAYERS, EXPERTS = 3, models.MOE.experts
ASKED = st.tuples(st.integers(0, LAYERS - 1), st.sets(st.integers(0, EXPERTS - 1), max_size=3))
PREDICTED = st.lists(st.integers(0, EXPERTS - 1), max_size=4, unique=True)


def lies(cache, slot):
    return jax.tree.map(lambda a: np.asarray(a[slot]), cache.pool)


@pytest.fixture(scope="module", params=[5, 8, 40])
def cache(request):
    return models.cache(request.param)


@given(traffic=st.lists(st.tuples(ASKED, PREDICTED), max_size=12))
@settings(max_examples=60, deadline=None)
def test_slots_hold_what_the_store_has_and_counts_add_up(traffic, cache):
    before, read = Counts(**vars(cache.counts)), 0
    for (layer, experts), predicted in traffic:
        known = {e for e in experts if (layer, e) in cache.slots}
        cache.judge(layer, sorted(experts))
        table = cache.hold(layer, sorted(experts))
        read += len(experts - known)
        assert set(np.flatnonzero(table < cache.slots.count)) == experts
        for expert in experts:
            wanted = as_pool(cache.store.read((layer, expert)), FP32)
            assert models.same_bits(lies(cache, table[expert]), wanted)
        cache.predict((layer + 1) % LAYERS, predicted)
    made = cache.counts.since(before)
    assert made.wanted == sum(len(experts) for (_, experts), _ in traffic)
    assert made.wanted - made.hits == read
    assert made.read_bytes == read * cache.store.expert_bytes
    assert made.hits + made.ahead <= made.wanted
    assert made.right <= made.expected <= made.wanted


@pytest.mark.parametrize("precision", [FP32, BF16, gemm.FP8], ids=lambda p: p.name)
def test_the_device_never_holds_more_than_was_asked_for(precision):
    """Live arrays, looked at whenever an expert is read, while others wait on the device."""
    backend, _ = models.backends(precision)
    seen, lock = [], threading.Lock()

    class Watched(Store):
        def read(self, key):
            with lock:
                seen.append(live())
            return super().read(key)

    gc.collect()
    base = live()
    cache = models.cache(14, backend, Watched)
    rng = np.random.default_rng(0)
    for turn in range(60):
        cache.hold(turn % LAYERS, rng.permutation(EXPERTS)[:3].tolist())
        seen.append(live())
        cache.predict((turn + 1) % LAYERS, rng.permutation(EXPERTS)[:5].tolist())
    used = max(seen) - base
    room = 14 * cache.store.expert_bytes
    pool = sum(a.nbytes for a in jax.tree.leaves(cache.pool))
    assert pool <= used <= room
    assert room - pool < 5 * cache.store.expert_bytes  # a quarter is on its way, and it is used
    assert cache.counts.ahead > 0


def live():
    return sum(a.nbytes for a in jax.live_arrays())


def test_the_heaviest_experts_are_there_before_the_first_token():
    rng = np.random.default_rng(1)
    loads = rng.permutation(LAYERS * EXPERTS).reshape(LAYERS, EXPERTS)
    cache = models.cache(9, loads=tuple(map(tuple, loads.tolist())))
    heaviest = {divmod(int(i), EXPERTS) for i in np.argsort(-loads.reshape(-1))[:cache.slots.count]}
    assert set(cache.slots.keys) == heaviest
    for key in heaviest:
        wanted = as_pool(cache.store.read(key), FP32)
        assert models.same_bits(lies(cache, cache.slots.find(key)), wanted)
    assert cache.counts.wanted == 0
    assert cache.counts.read_bytes == len(heaviest) * cache.store.expert_bytes


def test_loads_of_another_model_are_refused():
    with pytest.raises(UserError, match=r"\[3, 8\].*3 mixture layers of 9"):
        models.cache(9, loads=((1.0,) * 8,) * 3)


def test_room_for_less_than_a_tokens_experts_is_refused_with_the_least():
    there = models.store()
    least = (models.MOE.experts_per_token + 1) * there.expert_bytes
    with pytest.raises(UserError, match=f"at least {-(-least // 1000)}kB"):
        models.ExpertCache(there, models.CFG, FP32, Room(least - 1))
    assert models.ExpertCache(there, models.CFG, FP32, Room(least)).slots.count == 2


def test_what_could_not_be_read_is_not_said_to_be_there():
    class Broken(Store):
        broken = False

        def read(self, key):
            if self.broken and key[1] == 4:
                raise UserError("the disk is gone; put it back")
            return super().read(key)

    cache = models.cache(8, cls=Broken)
    cache.hold(0, [1, 2, 3])
    cache.store.broken = True
    for predicted in ([], [4]):
        cache.predict(1, predicted)
        with pytest.raises(UserError, match="put it back"):
            cache.hold(1, [4, 5])
    cache.store.broken = False
    table = cache.hold(1, [4, 5])
    for expert in (4, 5):
        wanted = as_pool(cache.store.read((1, expert)), FP32)
        assert models.same_bits(lies(cache, table[expert]), wanted)


def test_wrong_predictions_take_no_slot():
    cache = models.cache(20, is_ahead=True)
    cache.hold(0, [0, 1, 2])
    before = cache.slots.keys
    cache.predict(1, [5, 6])
    cache.judge(1, [7])
    cache.hold(1, [7])
    assert set(cache.slots.keys) == {*before, (1, 7)}
    assert (cache.counts.expected, cache.counts.right) == (1, 0)


def test_after_many_wrong_predictions_a_right_one_is_still_fetched():
    cache = models.cache(20)
    for _ in range(9):
        cache.predict(1, [5, 6])
        cache.hold(1, [7])
    assert cache.counts.ahead == 0
    deadline = time.monotonic() + 30
    while cache.counts.ahead == 0:  # as soon as the last wrong one has been read
        assert time.monotonic() < deadline
        cache.predict(2, [8])
        cache.hold(2, [8])
        cache.slots.forget([(2, 8)])
