"""A base and two runs that were tuned from it, which several tests look at."""

import pytest

from dsjax.config.sft import ExpertsConfig, LoRAConfig
from tests.train.tuning import small_sft


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    return small_sft.make_base(tmp_path_factory.mktemp("sft") / "base")


@pytest.fixture(scope="session")
def data(base):
    return small_sft.write_sums(base.parent / "sums.jsonl")


@pytest.fixture(scope="session")
def lora(base, data):
    """A run with adapters, and what it said."""
    run = small_sft.configured(
        base, data, base.parent / "lora",
        lora=LoRAConfig(rank=3, alpha=6.0, targets=("attention", "ffn", "shared_expert", "expert")))
    return run, small_sft.tune(run)


@pytest.fixture(scope="session")
def experts(base, data):
    """A run in which some experts learn, and what it said."""
    run = small_sft.configured(base, data, base.parent / "experts",
                               experts=ExpertsConfig(threshold=0.5))
    return run, small_sft.tune(run)
