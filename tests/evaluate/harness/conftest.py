"""A small run behind the harness's interface, and a folder as docs/evaluation.md says it."""

import shutil

import pytest

from tests.evaluate import small
from tests.evaluate.harness.asked import CONTEXT
from tests.evaluate.tasks.golden import DATA


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    return small.make_run(tmp_path_factory.mktemp("small") / "run")


@pytest.fixture(scope="session")
def lm(run):
    from dsjax.evaluate.harness.model import DsjaxLM

    return DsjaxLM(folder=str(run), context=CONTEXT, slots=2, max_gen_toks=24)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """data/eval with the public files, and no network."""
    import datasets

    shutil.copytree(DATA, tmp_path / "data" / "eval")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    return tmp_path
