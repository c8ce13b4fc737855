"""The engine's prefill is compiled for machines that are not here; needs their compilers.

`pip install '.[tpu-aot]'` and `pip install '.[gpu-aot]'`; without one its tests are skipped.
"""

import dataclasses
import json
import os
import subprocess
import sys

import pytest

from dsjax.config.load import load
from dsjax.config.parallel import ParallelConfig
from dsjax.errors import UserError
from dsjax.plan import prefill, target

SMALL = ["tiny", "--model.layers", "3", "--precision", "bf16", "--precision.activations",
         "bfloat16", "--prefill"]


def compiled(machine, positions, *flags):
    """Run `dsjax compile --prefill --json` in a process of its own: a compiler sets its platform.
    """
    try:
        target.require(target.parse(machine))
    except UserError as error:
        pytest.skip(str(error))
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-m", "dsjax", "compile", *SMALL, str(positions), "--on", machine, *flags,
         "--json"], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode in (0, 1), done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.exhaustive
@pytest.mark.parametrize("machine", ["v5p:2x2x1", "h200:1x4"])
def test_a_prefill_is_compiled_and_its_pages_are_the_prompts(machine):
    layout = ("--parallel.expert", "4")
    short, long = (compiled(machine, n, *layout) for n in (4096, 8192))
    for found in (short, long):
        assert found["compiled"]
        assert found["fits"]
        assert sum(found["parts"].values()) == found["bytes"] > 0
    cfg = load("tiny").model.attention
    a_token = 3 * 2 * (cfg.kv_rank + cfg.rope_dim) + 4  # latents of three layers, and its id
    more = long["parts"]["pages and slots"] - short["parts"]["pages and slots"]
    assert more == 4096 * a_token
    assert long["parts"]["weights"] == short["parts"]["weights"]


@pytest.mark.parametrize(("layout", "prompt", "said"), [
    ({"expert": 2}, (4096, 256), "has 4 devices and the layout"),
    ({"expert": 4}, (128, 256), "cannot be read in pieces of 256; use --piece 1 to 128"),
    ({"expert": 4}, (0, 256), "--prefill 0 is no prompt"),
    ({"expert": 4, "interleave": True}, (4096, 256), "leave --parallel.pipe"),
])
def test_what_cannot_be_compiled_is_refused_before_a_compiler_is_asked(layout, prompt, said):
    run = dataclasses.replace(load("tiny"), parallel=ParallelConfig(**layout))
    with pytest.raises(UserError, match=said):
        prefill.plan(run, target.parse("v5p:2x2x1"), prefill.Prompt(*prompt))
