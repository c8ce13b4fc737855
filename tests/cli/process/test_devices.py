"""Devices that a layout leaves idle are said, unless nobody asked for more than one."""

import jax
import pytest

from dsjax.cli.process import devices
from dsjax.config.parallel import ParallelConfig


@pytest.mark.parametrize(("layout", "is_asked", "words"), [
    (ParallelConfig(data=3), False, "3 of 8 devices are used; --parallel.data"),
    (ParallelConfig(), True, "1 of 8 devices is used"),
    (ParallelConfig(), False, ""),
    (ParallelConfig(data=2, expert=4), True, ""),
])
def test_devices_that_are_left_idle_are_said(layout, is_asked, words, capsys):
    assert jax.device_count() == 8
    devices.say_if_idle(layout, is_asked)
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == bool(words)
