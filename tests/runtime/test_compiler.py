"""Options that compilers are given make a difference: work that needs no exchange runs beside one.

Needs the compilers of the extras tpu-aot and gpu-aot; what is compiled here is not run.
"""

import json
import os
import subprocess
import sys

import jax
import pytest

from dsjax.plan import target
from dsjax.runtime import compiler

PROGRAM = """
import json, sys
import jax
jax.config.update("jax_platforms", "cpu")
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
from dsjax.plan import hlo, target
from dsjax.runtime import compiler

machine, asked = target.parse(sys.argv[1]), json.loads(sys.argv[2])
mesh = Mesh(np.array(target.devices(machine)), ("e",), axis_types=(AxisType.Auto,))
parts = mesh.size

def there(x, sent):
    starts = jnp.zeros_like(sent) + jnp.arange(parts, dtype=jnp.int32) * (x.shape[0] // parts)
    mine = jnp.zeros_like(sent) + lax.axis_index("e") * (x.shape[0] // parts)
    return lax.ragged_all_to_all(x, jnp.zeros_like(x), starts, sent, mine, sent, axis_name="e")

def layer(x, w, into, out, shared_into, shared_out, sent):
    x = jnp.tanh(x @ w)
    moved = jax.shard_map(there, mesh=mesh, in_specs=(P("e"), P("e")), out_specs=P("e"))
    y = moved(jnp.tanh(moved(x, sent) @ into) @ out, sent)
    return y + jnp.tanh(x @ shared_into) @ shared_out

def shape(sizes, spec=P(), dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(sizes, dtype, sharding=NamedSharding(mesh, spec))

D, F = 2048, 5632
args = (shape((4096 * parts, D), P("e")), shape((D, D)), *[shape((D, F)), shape((F, D))] * 2,
        shape((parts * parts,), P("e"), jnp.int32))
platform = machine.chip.platform
made = jax.jit(layer).trace(*args).lower(lowering_platforms=(platform,)).compile(
    compiler_options=compiler.ahead(platform) | asked)
print(json.dumps([c.is_hidden for c in hlo.collectives(made.as_text())]))
"""


def beside_products(machine, **asked):
    """Of the two exchanges of a layer with a shared expert, how many run beside products."""
    try:
        target.require(target.parse(machine))
    except target.UserError as error:
        pytest.skip(str(error))
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run([sys.executable, "-c", PROGRAM, machine, json.dumps(asked)],
                          capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return sum(json.loads(done.stdout))


@pytest.mark.slow
@pytest.mark.parametrize("machine", ["v5p:2x2x2", "h200:1x8"])
def test_the_shared_expert_runs_beside_an_exchange(machine):
    assert beside_products(machine) >= 1


@pytest.mark.slow
def test_a_tpu_needs_to_be_asked_for_it():
    assert beside_products("v5p:2x2x2", xla_tpu_use_aggressive_scheduling=False) == 0


@pytest.mark.parametrize(("flags", "left"), [
    ("", ()),
    ("--xla_gpu_enable_latency_hiding_scheduler=false --xla_dump_to=x",
     ("xla_gpu_enable_latency_hiding_scheduler",)),
    ("--noxla_gpu_enable_latency_hiding_scheduler", ("xla_gpu_enable_latency_hiding_scheduler",)),
])
def test_a_flag_of_the_user_is_left_to_the_user(flags, left, monkeypatch):
    """An option of a program wins over XLA_FLAGS, so one that is named there must not be given."""
    monkeypatch.setenv("XLA_FLAGS", flags)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(compiler, "_is_known", lambda name, value: True)
    assert set(compiler.RUN["cuda"]) - set(compiler.here()) == set(left)
