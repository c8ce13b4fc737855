"""Parts that are handed in reach every program: a pipeline's ranks and decoding too.

What it defends against: a seam that is there, and left out where a backend is made from another.
"""

import ast
import dataclasses
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp

from dsjax.cli.benches import equal_layouts
from dsjax.config.machine import MachineConfig
from dsjax.config.parallel import ParallelConfig
from dsjax.layers import remat
from dsjax.layers.backend import single
from dsjax.model import transformer
from dsjax.numerics.precision import FP32
from dsjax.ops import attention, expert_mlp
from dsjax.ops.expert_mlp import ExpertMLP
from dsjax.runtime import backend as backends

PACKAGE = Path(__file__).parents[2] / "dsjax"
OURS = expert_mlp.batched(FP32)


def attend(q, k, v, segments, scale):
    return attention.attend_plain(q, k, v, segments, scale)


MAKERS = {
    "layers/backend.py",  # the plain one: float32, one device
    "model/transformer.py", "interop/nnx.py",  # which a call without a machine takes
    "runtime/backend.py", "runtime/needs.py",  # where a machine, a precision and a layout choose
}


def test_only_runtime_makes_a_backend_for_a_machine():
    makers = {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py")
              for node in ast.walk(ast.parse(path.read_text()))
              if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
              and node.func.id in ("Backend", "single")}
    assert makers == MAKERS


def test_a_rank_of_a_pipeline_keeps_what_was_handed_in():
    layout = ParallelConfig(pipe=2, expert=2)
    model = equal_layouts.RUN.model
    foreign = ExpertMLP(FP32, OURS.forward, OURS.backward)
    given = dataclasses.replace(single(), attend=attend, expert_mlp=foreign, loss_chunk=7)
    rank = backends.for_rank(given, model, layout)
    kept = {f.name for f in dataclasses.fields(rank)
            if getattr(rank, f.name) is getattr(given, f.name)}
    assert {f.name for f in dataclasses.fields(rank)} - kept == {"dispatch"}


def test_a_foreign_product_multiplies_for_a_handful_of_tokens_too():
    """Few assignments are written out by a form of our own, which would leave it out."""
    asked = []

    def forward(*given):
        asked.append(given[0].shape)
        return OURS.forward(*given)

    backend = backends.decoding(single())
    x, experts = jnp.ones((1, 8)), jnp.array([[0, 5]], jnp.int32)
    weights, gate_up = jnp.ones((1, 2)), jax.random.normal(jax.random.key(0), (16, 8, 2, 4))
    down = jax.random.normal(jax.random.key(1), (16, 4, 8))
    given = (x, experts, weights, gate_up, down)
    y, _ = backend.dispatch(*given, ExpertMLP(FP32, forward, OURS.backward))
    assert asked
    assert jnp.allclose(y, backend.dispatch(*given, OURS)[0], atol=1e-5)


def test_layers_are_written_out_where_a_model_trains_on_one_gpu():
    gpu = SimpleNamespace(platform="gpu", device_kind="NVIDIA H200", compute_capability="9.0")
    run = equal_layouts.RUN
    layers = run.model.layers
    told = dataclasses.replace(run, machine=MachineConfig(unroll=2))
    deep = dataclasses.replace(run, model=dataclasses.replace(run.model, layers=33))
    for one, device, wanted in ((run, gpu, layers), (told, gpu, 2), (deep, gpu, 1),
                                (run, jax.devices()[0], 1)):
        assert backends.for_run(one, device=device).unroll == wanted
    assert backends.backend_for(run.model, run.precision, device=gpu).unroll == 1
    mesh = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2])
    assert backends.layers_at_once(run.machine, run.model, gpu, mesh) == 1


def test_layers_that_are_written_out_are_computed_again_all_the_same():
    """Without a scan between them the compiler would find both computations equal."""
    cfg = equal_layouts.RUN.model
    p = jax.eval_shape(lambda: transformer.init(cfg, jax.random.key(0)))
    tokens = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    for unroll, forbids in ((1, False), (cfg.layers, True)):
        backend = dataclasses.replace(single(), remat=remat.policy("full"), unroll=unroll)
        made = jax.make_jaxpr(lambda p, t, b=backend: transformer.logits(p, t, cfg, None, b))(
            p, tokens)
        assert f"prevent_cse={forbids}" in str(made)
        assert f"prevent_cse={not forbids}" not in str(made)
