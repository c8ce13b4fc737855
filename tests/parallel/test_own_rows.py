"""A kernel's products over a mesh are of each device's own rows, and equal to its twin's."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from dsjax.cli.benches import equal_layouts
from dsjax.config.parallel import ParallelConfig
from dsjax.config.run import PrecisionConfig
from dsjax.kernels import tiles
from dsjax.layers import backend as backends
from dsjax.numerics import codes, gemm
from dsjax.parallel import mesh_backend
from dsjax.parallel.mesh import AXES, make_mesh
from dsjax.runtime import backend as chosen
from dsjax.runtime import precision as runtime_precision
from dsjax.train import sharding
from tests.kernels import operands


@pytest.mark.parametrize("rows", [8 * 128, 8 * 128 + 8], ids=["whole tiles", "tiles on two"])
def test_a_kernel_s_products_are_each_device_s_own_rows_added_up(rows):
    """The kernel here is its definition; codes and scales are such that every sum is exact."""
    seen = []

    def kernel(*read):
        seen.append(jax.sharding.get_abstract_mesh().manual_axes)
        return operands.plain(*read)

    layout = ParallelConfig(data=2, fsdp=2, expert=2)
    mesh = make_mesh(layout)
    precision = gemm.precision(gemm.V3_1, tiles.machine(kernel))
    own = mesh_backend.own_rows(precision, mesh)
    x = operands.quantized(1, (1, 128), rows, 200)
    w = operands.quantized(2, (128, 128), 200, 136)
    dy = gemm.Grad(operands.quantized(3, (1, 128), rows, 136),
                   operands.quantized(4, (128, 1), rows, 136))
    turned = operands.quantized(5, (128, 1), rows, 200)
    on_rows = NamedSharding(mesh, PartitionSpec(AXES))

    def spread(tree):
        return jax.tree.map(
            lambda a: jax.device_put(a, on_rows) if a.shape[0] % 8 == 0 else a, tree)

    for name, args, moved in [("fprop", (x, w), (0,)), ("dgrad", (dy, w), (0,)),
                              ("wgrad", (turned, dy), (0, 1))]:
        given = [spread(a) if i in moved else a for i, a in enumerate(args)]
        run = jax.jit(getattr(own, name)).lower(*given).compile()
        y = run(*given)
        np.testing.assert_array_equal(y, getattr(precision.reference, name)(*args))
        if rows % 128 == 0:
            assert y.sharding.spec[:1] == ((AXES,) if name != "wgrad" else ())
            assert run.as_text().count(" all-reduce(") == (name == "wgrad")
            assert " all-gather(" not in run.as_text()
    assert len(seen) == (3 if rows % 128 == 0 else 0)
    assert all(len(axes) == len(mesh.axis_names) for axes in seen)


@pytest.mark.parametrize("name", ["linear", "o_proj"])
def test_a_backend_on_a_mesh_gives_its_linears_a_device_s_own_rows(name):
    """All three products, traced: a kernel is only ever called where every axis is manual."""
    seen = []

    def kernel(*read):
        seen.append(jax.sharding.get_abstract_mesh().manual_axes)
        return operands.plain(*read)

    run = dataclasses.replace(equal_layouts.RUN, parallel=ParallelConfig(data=2, fsdp=2, expert=2))
    mesh = sharding.open_mesh(run)
    backend = backends.single(gemm.precision(gemm.V3_1, tiles.machine(kernel)))
    product = getattr(chosen.over(backend, run.model, run.parallel, mesh), name)

    def pulled(x, w, dy):
        y, pull = jax.vjp(lambda x, w: product(x, w, 1), x, w)
        return y, pull(dy)

    jax.eval_shape(pulled, *(jax.ShapeDtypeStruct(shape, np.float32)
                             for shape in ((1024, 200), (200, 136), (1024, 136))))
    assert len(seen) == 3
    assert all(set(axes) == set(mesh.axis_names) for axes in seen)


@pytest.mark.exhaustive  # compiles two steps for eight devices
def test_a_whole_step_by_a_kernel_is_its_twin_s_on_eight_devices(monkeypatch):
    """Experts, shared experts and attention, forth and back; tiles of the 48 rows of a device."""
    recipe, calls = dataclasses.replace(gemm.V3_1, turned_tile=(48, 1)), []

    def kernel(*read):
        calls.append(read[0].shape)
        return operands.plain(*read)

    run = dataclasses.replace(
        equal_layouts.RUN, precision=PrecisionConfig("fp8"))
    layout, results = ParallelConfig(data=2, fsdp=2, expert=2), []
    for machine in (codes.MATMUL, tiles.machine(kernel)):
        precision = gemm.precision(recipe, machine)
        monkeypatch.setattr(runtime_precision, "fp8", lambda _, precision=precision: precision)
        results.append(equal_layouts.Stepper(layout, 1, run).take("packed"))
    (state_a, a), (state_b, b) = results
    assert {len(shape) for shape in calls} == {3}
    np.testing.assert_allclose(b.next_token, a.next_token, rtol=1e-6)
    for got, wanted in zip(jax.tree.leaves(state_b.opt.mu), jax.tree.leaves(state_a.opt.mu)):
        got, wanted = np.asarray(got, np.float32), np.asarray(wanted, np.float32)
        assert np.linalg.norm(got - wanted) <= 1e-5 * np.linalg.norm(wanted)
