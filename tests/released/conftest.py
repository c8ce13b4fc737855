"""A released checkpoint of a small model."""

import pytest

from dsjax.released import hf
from tests.released.test_hf import CFG, PARAMS


@pytest.fixture
def source(tmp_path):
    hf.save(tmp_path / "source", CFG, PARAMS)
    (tmp_path / "source" / "generation_config.json").write_text("{}")
    return tmp_path / "source"
