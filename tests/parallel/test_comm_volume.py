"""Two stages cross to each node once: a token crosses M times at most, wherever its experts are."""

import numpy as np
import pytest

from dsjax.numerics.wire import FP8_WIRE
from dsjax.parallel.comm_volume import count

E, DEVICES, NODES, K = 32, 8, 4, 5


@pytest.fixture
def experts():
    rng = np.random.default_rng(3)
    return np.stack([rng.choice(E, K, replace=False) for _ in range(DEVICES * 7)])


def by_hand(experts, stages):
    slow = fast = 0
    for t, chosen in enumerate(experts):
        own = t // 7
        devices = {int(e) // (E // DEVICES) for e in chosen}
        nodes = {d // 2 for d in devices}
        if stages == 1:
            slow += sum(d // 2 != own // 2 for d in devices)
            fast += sum(d // 2 == own // 2 and d != own for d in devices)
        else:
            slow += sum(n != own // 2 for n in nodes)
            fast += sum(d % 2 != own % 2 for d in devices)
    return slow / len(experts), fast / len(experts)


@pytest.mark.parametrize("stages", [1, 2])
def test_copies_are_those_of_a_loop_over_tokens(experts, stages):
    found = count(experts, E, DEVICES, NODES, stages)
    assert (found.slow, found.fast) == pytest.approx(by_hand(experts, stages))


def test_two_stages_cross_less_and_never_more_than_a_token_has_nodes(experts):
    one, two = (count(experts, E, DEVICES, NODES, stages) for stages in (1, 2))
    assert two.slow < one.slow
    assert two.slow <= two.most_nodes <= NODES


def test_bytes_of_v3_are_a_byte_a_number_out_and_two_back():
    once = count(np.array([[255], [0]]), 256, 2, 2, 2)  # each token crosses once
    found = once.bytes(FP8_WIRE, 7168, 8, 2)
    assert found == {"slow": 7168 + 56 + 64 + 2 * 7168, "fast": 0}
