"""The README's first Python runs as it stands."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()


@pytest.mark.slow
def test_the_snippet_makes_logits_of_tokens():
    snippet = re.findall(r"^```python\n(.*?)^```", README, re.M | re.S)[0]
    names: dict = {}
    exec(snippet, names)
    cfg = names["cfg"]
    assert names["logits"].shape == (*names["tokens"].shape, cfg.vocab)
    assert "[B, T, V] float32" in snippet
    assert names["logits"].dtype == "float32"


def test_the_tests_that_hold_each_kind_of_fault_are_there():
    tests = Path(__file__).parent
    lines = (tests / "README.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("|")]
    named = [name for row in rows for name in re.findall(r"`(\S+\.py)`", row)]
    assert len(named) > 30
    assert [name for name in named if not (tests / name).is_file()] == []
