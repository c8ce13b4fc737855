"""Reading metrics never waits for the device, and no speed is more than what was computed.

The recorded clocks are those of the loop: programs that run in the calling thread (CPU) and those
that run beside it (GPU, TPU), with evaluations and saves between.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsjax.report.pace import Delayed, Throughput


def test_metrics_come_back_one_step_late_and_none_is_lost():
    delayed, seen = Delayed(), []
    for step in range(1, 5):
        seen.append(
            delayed.push(step, {"loss": jnp.float32(step), "loads": jnp.full((2, 3), step)})
        )
    seen.append(delayed.flush())
    assert seen[0] is None
    assert [one.step for one in seen[1:]] == [1, 2, 3, 4]
    for one in seen[1:]:
        assert isinstance(one.metrics["loads"], np.ndarray)
        assert float(one.metrics["loss"]) == one.step
    assert delayed.flush() is None


def test_pushing_a_step_waits_neither_for_it_nor_fails_under_a_transfer_guard():
    slow = jax.jit(lambda x: jax.lax.fori_loop(0, 200, lambda _, y: jnp.tanh(y @ y), x))
    x = jnp.full((512, 512), 0.01)
    slow(x).block_until_ready()
    delayed = Delayed()
    with jax.transfer_guard("disallow"):
        running = slow(x)
        assert delayed.push(1, {"y": running}) is None
        assert not running.is_ready()
        one = delayed.flush()
    assert one.step == 1
    np.testing.assert_array_equal(one.metrics["y"], running)


class Machine:
    """A clock, and a device of steps of `step_s`, in the calling thread or beside it."""

    def __init__(self, step_s, compile_s, is_inline, host_s=0.0):
        self.now = self.free = 0.0
        self.step_s, self.compile_s, self.is_inline, self.host_s = (
            step_s, compile_s, is_inline, host_s)

    def clock(self):
        return self.now

    def dispatch(self, is_new):
        """Run a step; return when it ends."""
        self.now += self.compile_s if is_new else 0.0
        self.free = max(self.free, self.now) + self.step_s
        if self.is_inline:
            self.now = self.free
        return self.free

    def wait(self, end):
        self.now = max(self.now, end)




def course(machine, steps, pauses=(), tokens=100.0):
    """The speeds shown after each step by a loop as train.loop's, and the wall's own."""
    speed = Throughput(clock=machine.clock)
    shown, held = [], None

    def read(one):
        number, began, end, seen = one
        if seen is None:
            machine.wait(end)
            seen = machine.now
        speed.tick(tokens, began, seen, flops=10 * tokens)
        shown.append((number, speed.tok_s))

    for number in range(1, steps + 1):
        machine.now += machine.host_s
        began = speed.begin((4, 17))
        end = machine.dispatch(is_new=number == 1)
        earlier, held = held, (number, began, end, machine.now if end <= machine.now else None)
        if earlier is not None:
            read(earlier)
        if number in pauses or number == steps:
            read(held)
            held = None
            machine.now += 60.0
            speed.restart()
    return dict(shown), speed


@pytest.mark.parametrize("is_inline", [True, False])
@pytest.mark.parametrize("pauses", [(), (1,), (2,), (3, 4, 5), range(1, 30)])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 29])
def test_no_speed_exceeds_the_machines_from_the_first_that_is_shown(is_inline, pauses, steps):
    machine = Machine(step_s=2.0, compile_s=50.0, is_inline=is_inline)
    shown, speed = course(machine, steps, pauses)
    assert list(shown) == list(range(1, steps + 1))
    assert all(math.isnan(shown[n]) for n in (1, 2) if n in shown)
    assert all(shown[n] == pytest.approx(50.0) for n in shown if n > 2)
    if steps > 2:
        assert speed.flop_s == pytest.approx(500.0)
        assert speed.eta(7) == pytest.approx(14.0)
    else:
        assert math.isnan(speed.eta(7))


def test_what_the_host_takes_counts_where_the_device_waits_for_it():
    shown, _ = course(Machine(2.0, 50.0, is_inline=True, host_s=3.0), 9)
    assert shown[9] == pytest.approx(100 / 5)
    shown, _ = course(Machine(4.0, 50.0, is_inline=False, host_s=3.0), 9)
    assert shown[9] == pytest.approx(100 / 4)  # hidden behind the device


def test_the_shown_speed_is_that_of_the_last_steps_together():
    speed = Throughput(window=3)
    speed.tick(100, None, 100.0)
    for ended in (101.0, 131.0, 132.0):  # a hiccup of 29 s is part of what was
        speed.tick(100, 100.0, ended)
    assert speed.tok_s == pytest.approx(300 / 32)
    for ended in (134.0, 136.0, 138.0):
        speed.tick(100, 132.0, ended)
    assert speed.tok_s == pytest.approx(50)


def test_a_new_shape_is_compiled_and_its_step_not_counted():
    now = iter(range(100))
    speed = Throughput(clock=lambda: next(now))
    assert speed.begin((4, 17)) is None
    assert speed.begin((4, 17)) == 0
    assert speed.begin((8, 9)) is None  # the curriculum's next length
    assert speed.begin((4, 17)) == 1


def test_results_that_are_there_at_once_ended_when_they_were_handed_over():
    """Two steps read right after each other have their own ends: neither is of no length."""
    ticks = iter([1.0, 3.0, 9.0])
    delayed = Delayed(clock=lambda: next(ticks))
    ready = jnp.float32(1).block_until_ready()
    assert delayed.push(1, {"loss": ready}, began=0.5) is None
    one, two = delayed.push(2, {"loss": ready}, began=1.0), delayed.flush()
    assert (one.began, one.ended, two.began, two.ended) == (0.5, 1.0, 1.0, 3.0)
