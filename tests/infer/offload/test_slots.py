"""The table of slots is what a plain list of last uses says, whatever is asked of it."""

from collections.abc import Iterator

from hypothesis import given, settings
from hypothesis import strategies as st

from dsjax.infer.offload.slots import Slots

KEYS = st.tuples(st.integers(0, 3), st.integers(0, 5))
LOADS = st.dictionaries(KEYS, st.integers(0, 3).map(float))


class Plain:
    """Uses of every key, by time; a pass over all of them finds who goes."""

    def __init__(self, count, loads):
        self.count, self.loads, self.used, self.time = count, loads, {}, 0

    def weight(self, key):
        return self.loads.get(key, 0.0), key

    def hold(self, keys):
        self.time += 1
        missing = {key for key in keys if key not in self.used}
        evicted = set()
        while len(self.used) + len(missing) > self.count:
            going = min((key for key in self.used if key not in keys),
                        key=lambda key: (self.used[key], self.weight(key)))
            del self.used[going]
            evicted.add(going)
        self.used.update(dict.fromkeys(keys, self.time))
        return missing, evicted

    def fill(self):
        rest = sorted(self.loads.keys() - self.used.keys(), key=self.weight, reverse=True)
        return self.hold(set(rest[: self.count - len(self.used)]))


@st.composite
def traffic(draw) -> tuple[int, dict, list[set]]:
    count = draw(st.integers(1, 7))
    asked = st.sets(KEYS, max_size=count)
    return count, draw(LOADS), draw(st.lists(asked, max_size=20))


@given(traffic(), st.booleans())
@settings(max_examples=300, deadline=None)
def test_it_holds_and_drops_what_a_plain_model_does(plan, is_filled):
    count, loads, asked = plan
    slots, plain = Slots(count, loads), Plain(count, loads)
    lies: dict = {}  # what somebody who fills slots as told finds in them
    for keys in fills(slots, is_filled, asked):
        missing, evicted = plain.fill() if keys is None else plain.hold(keys)
        held = slots.first_fill() if keys is None else slots.hold(keys)
        assert (set(held.missing), set(held.evicted)) == (missing, evicted)
        assert set(slots.keys) == plain.used.keys()
        assert len(slots) == len(plain.used) <= count
        lies.update({held.slots[key]: key for key in held.missing})
        assert all(lies[slots.find(key)] == key for key in slots.keys)
        assert len({slots.find(key) for key in slots.keys}) == len(slots)
        assert keys is None or all(held.slots[key] == slots.find(key) for key in keys)
        weights = [plain.weight(key) for key in held.missing]
        assert weights == sorted(weights, reverse=True)


def fills(slots, is_filled, asked) -> Iterator[set | None]:
    if is_filled:
        yield None
    yield from asked


@given(st.integers(1, 6), st.data())
@settings(max_examples=100, deadline=None)
def test_what_was_not_filled_has_no_slot_and_its_slot_is_free(count, data):
    slots = Slots(count)
    slots.hold(data.draw(st.sets(KEYS, max_size=count)))
    held = slots.hold(data.draw(st.sets(KEYS, min_size=1, max_size=count)))
    lost = set(held.missing)
    before = set(slots.keys)
    slots.forget(lost)
    assert set(slots.keys) == before - lost
    everything = data.draw(st.sets(KEYS, min_size=count, max_size=count))
    assert set(slots.hold(everything).slots.values()) == set(range(count))
