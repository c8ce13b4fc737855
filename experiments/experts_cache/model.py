"""The model whose experts are cached: `tiny` with more and smaller experts, and two layers more.

It is trained by the demo's recipe on the demo's corpus, so that its router has preferences.
"""

import dataclasses

from configs import tiny
from dsjax.config.run import PrecisionConfig, RunConfig


def config() -> RunConfig:
    """Five mixture layers of 64 experts, of which a token visits four in four of eight groups."""
    run = tiny.config()
    assert run.model.moe is not None, "tiny is a mixture"
    moe = dataclasses.replace(run.model.moe, experts=64, expert_dim=64, groups=8,
                              groups_per_token=4)
    return dataclasses.replace(
        run, name="experts-cache", model=dataclasses.replace(run.model, layers=6, moe=moe),
        train=dataclasses.replace(run.train, steps=400), precision=PrecisionConfig(matmul="bf16"))
