"""A whole step is compiled for a TPU and for a GPU that are not here; needs their compilers.

`pip install '.[tpu-aot]'` and `pip install '.[gpu-aot]'`; without one its tests are skipped. What
is compiled here is not run.
"""

import json
import os
import subprocess
import sys

import pytest

from dsjax.plan import target

SMALL = [
    "tiny", "--model.layers", "3", "--model.vocab", "512", "--model.moe.expert-dim", "128",
    "--train.seq-len", "128", "--train.batch-size", "16", "--precision", "bf16", "--machine.remat",
    "full",
]


def compiled(machine, *flags):
    """Run `dsjax compile --json` in a process of its own: a compiler sets its platform."""
    try:
        target.require(target.parse(machine))
    except target.UserError as error:
        pytest.skip(str(error))
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-m", "dsjax", "compile", *SMALL, "--on", machine, *flags, "--json"],
        capture_output=True, text=True, check=False, env=environment)
    assert done.returncode in (0, 1), done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize(("machine", "layout"), [
    ("v5p:2x2x1", ("--parallel.expert", "4")),
    ("h200:1x8", ("--parallel.data", "2", "--parallel.expert", "4", "--parallel.interleave")),
])
def test_a_whole_step_compiles_for_a_machine_that_is_not_here(machine, layout):
    found = compiled(machine, *layout)
    assert found["compiled"]
    assert found["fits"]
    assert found["advice"] == ""
    assert sum(found["parts"].values()) == found["bytes"] > 0
    rows = {(r["kind"], r["group"]): r for r in found["collectives"]}
    exchange = rows["ragged-all-to-all", 4]
    assert exchange["rare"] > 0  # rounds beyond the first, in loops over data
    halves = 2 if "--parallel.interleave" in layout else 1
    assert exchange["runs"] >= 2 * 4 * halves  # two layers: tokens, weights and numbers out, sums
    assert exchange["asynchronous"] > 0
    if halves == 2:
        assert exchange["attention"] > 0


def test_a_layout_of_another_size_is_refused_before_anything_is_compiled(capsys):
    try:
        target.require(target.parse("v5p:2x2x1"))
    except target.UserError as error:
        pytest.skip(str(error))
    from dsjax.cli.main import main

    assert main(["compile", "tiny", "--on", "v5p:2x2x1", "--parallel.expert", "2"]) == 2
    assert "has 4 devices" in capsys.readouterr().err
