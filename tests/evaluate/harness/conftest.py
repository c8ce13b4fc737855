"""A small run behind the harness's interface, and a folder as docs/evaluation.md says it."""

import pytest

from tests.evaluate import small
from tests.evaluate.harness.asked import CONTEXT, place


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    return small.make_run(tmp_path_factory.mktemp("small") / "run")


@pytest.fixture(scope="session")
def lm(run):
    from dsjax.evaluate.harness.model import DsjaxLM

    return DsjaxLM(folder=str(run), context=CONTEXT, slots=2, max_gen_toks=24)


@pytest.fixture
def here(tmp_path, monkeypatch):
    return place(tmp_path, monkeypatch)
