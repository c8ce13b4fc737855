"""A text does not depend on how the devices share rows, matrices and experts; precisions apply."""

import dataclasses

import jax
import pytest

from dsjax.config.parallel import ParallelConfig
from dsjax.config.run import PrecisionConfig
from dsjax.infer import Options, Sampling, default_backend, generate
from dsjax.model import transformer
from dsjax.parallel import mesh as meshes
from dsjax.parallel import rules
from dsjax.runtime.backend import for_decoding
from tests import agreement

MOE = dataclasses.replace(agreement.V3_MOE, experts=8, groups=4)
CFG = dataclasses.replace(agreement.TINY, layers=2, moe=MOE, mtp_depth=1)
PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 0, 1, 2, 3, 4]]
ASKED = [Sampling(temperature=0, max_new_tokens=11), Sampling(1.3, 0.9, max_new_tokens=10, seed=5),
         Sampling(temperature=0.7, max_new_tokens=12)]
LAYOUTS = {
    "data 2 x fsdp 2 x expert 2": ParallelConfig(data=2, fsdp=2, expert=2),
    "expert 8 over 2 nodes": ParallelConfig(expert=8, expert_nodes=2),
    "data 4": ParallelConfig(data=4),
}


def on(layout, precision):
    """Parameters as a mesh uses them, and the options to decode there."""
    mesh = meshes.make_mesh(layout)
    p = agreement.draw(transformer.specs(CFG), 2)
    placed = jax.device_put(p, rules.used_shardings(transformer.specs(CFG), mesh))
    backend = for_decoding(CFG, PrecisionConfig(precision), layout, mesh)
    return placed, Options(backend, mesh)


@pytest.fixture(scope="module")
def alone():
    """Completions of one device, plain and drafted."""
    p, backend = agreement.draw(transformer.specs(CFG), 2), default_backend()
    return [generate(p, CFG, PROMPTS, ASKED, Options(backend, draft=draft)).completions
            for draft in (False, True)]


@pytest.mark.parametrize("name", [
    "data 2 x fsdp 2 x expert 2",
    pytest.param("expert 8 over 2 nodes", marks=pytest.mark.exhaustive),
    pytest.param("data 4", marks=pytest.mark.exhaustive)])
def test_texts_are_those_of_one_device_greedy_and_sampled_plain_and_drafted(name, alone):
    placed, options = on(LAYOUTS[name], "fp32")
    for draft, wanted in zip((False, True), alone, strict=True):
        options = dataclasses.replace(options, draft=draft)
        assert generate(placed, CFG, PROMPTS, ASKED, options).completions == wanted


@pytest.mark.exhaustive
@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_other_precisions_decode_on_a_mesh_what_they_decode_on_one_device(precision):
    """Seeds without ties: operands are quantized a row at a time, so that sums differ by float32's
    rounding alone."""
    p = agreement.draw(transformer.specs(CFG), 2)
    one = Options(for_decoding(CFG, PrecisionConfig(precision)))
    wanted = generate(p, CFG, PROMPTS, ASKED, one).completions
    placed, options = on(LAYOUTS["data 2 x fsdp 2 x expert 2"], precision)
    assert generate(placed, CFG, PROMPTS, ASKED, options).completions == wanted
