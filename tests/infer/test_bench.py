"""Benchmarks count what they time: rows, passes, tokens."""

import pytest

from dsjax.infer import Model, default_backend
from dsjax.infer.bench import Load, prefill_bench, serve_bench
from dsjax.model import transformer
from tests import agreement
from tests.infer.engine.clients import EXPERTS


@pytest.fixture(scope="module")
def model():
    params = agreement.draw(transformer.specs(EXPERTS), 3)
    return Model(EXPERTS, params, None, 64, default_backend(), None)


def test_a_served_pass_gives_each_row_its_tokens(model):
    load = Load(batch=2, context=5, steps=2, repeats=3)
    found = serve_bench(model, load)
    assert found["tokens_per_pass"] == 1
    assert found["tok_s"] == pytest.approx(2 / found["ms_per_step"] * 1e3)
    assert 0 < found["host_share"] < 1


def test_a_prompts_tokens_are_counted_in_every_row(model):
    found = prefill_bench(model, Load(batch=2, context=5, repeats=3))
    assert found["tok_s"] == pytest.approx(10 / found["ms"] * 1e3)


def test_no_work_is_refused():
    with pytest.raises(ValueError, match="batch=0 must be at least 1"):
        Load(batch=0)
    assert Load(depth=0).new_tokens == 64 * 6
