"""A step holds the bytes that the config says, and FP8 a quarter of float32's."""

import pytest

from configs import small, tiny
from experiments.fp8_vs_bf16 import bytes

LOW = ("weights as products read them", "cached inputs of SwiGLU and experts")


@pytest.mark.parametrize("config", [
    tiny, pytest.param(small, marks=pytest.mark.exhaustive)], ids=lambda c: c.__name__)
def test_measured_bytes_are_the_arithmetic_and_fp8_saves_three_quarters(config):
    run = config.config()
    found = {}
    for name, how in bytes.PRECISIONS.items():
        measured, expected = bytes.measure(run, how), bytes.arithmetic(run, how)
        assert measured.keys() == expected.keys()
        for part, value in measured.items():
            assert abs(value / expected[part] - 1) < 0.01, (name, part)
        found[name] = sum(measured[part] for part in LOW)
    whole = found["float32"]
    assert found["bfloat16"] == whole / 2
    # Scales are 1 / 128 of the activations' codes and 1 / 128^2 of the weights': a byte each, or 4.
    assert 0.74 < 1 - found["FP8"] / whole < 0.75
    assert 0.74 < 1 - found["FP8, float32 scales"] / whole < 0.75
