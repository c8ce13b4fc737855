"""A released checkpoint is told from another of its shapes: parts were learnt of one of them."""

import dataclasses

from dsjax import weights
from dsjax.model import transformer
from dsjax.released import hf
from tests.agreement import TINY, draw


def test_a_fingerprint_is_of_numbers_and_not_of_sizes(tmp_path):
    cfg = dataclasses.replace(
        TINY, attention=dataclasses.replace(TINY.attention, latent_norm_eps=1e-6))
    params = draw(transformer.specs(cfg), 0)
    hf.save(tmp_path / "a", cfg, params)
    hf.save(tmp_path / "b", cfg, params)
    hf.save(tmp_path / "c", cfg, dataclasses.replace(params, norm=params.norm.at[0].add(0.5)))
    same, again, other = (weights.identity(tmp_path / name) for name in "abc")
    assert same == again != other
