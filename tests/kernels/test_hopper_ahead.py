"""Compiled for an H200, the kernel is tensor-core products of E4M3 that leave no partial sum.

Needs the extra gpu-aot, no GPU; skipped without. Nothing is run.
"""

import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dsjax.kernels import hopper
from dsjax.numerics import gemm
from dsjax.plan import target

PRODUCTS = gemm.products(gemm.V3_1, hopper.MACHINE)
M, K, N = 512, 1024, 640


@pytest.fixture
def products():
    """Each product, with the shapes it reads on an H200."""
    if not target.is_installed("jax_plugins.xla_cuda12"):
        pytest.skip("no compiler for GPUs: pip install 'dsjax[gpu-aot]'")
    mesh = Mesh(target.devices(target.parse("h200:1x1")), ("x",))

    def placed(f, *shape):
        held = jax.eval_shape(f, jax.ShapeDtypeStruct(shape, jnp.float32))
        where = NamedSharding(mesh, PartitionSpec())
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=where), held)

    x, w = placed(PRODUCTS.hold_once, M, K), placed(PRODUCTS.hold_weight, K, N)
    turned, grad = placed(PRODUCTS.hold_turned, M, K), placed(PRODUCTS.hold_grad, M, N)
    return {"fprop": (PRODUCTS.fprop, x, w), "dgrad": (PRODUCTS.dgrad, grad, w),
            "wgrad": (PRODUCTS.wgrad, turned, grad)}


@pytest.mark.parametrize("name", ["fprop", "dgrad", "wgrad"])
def test_products_are_the_tensor_core_s_and_partial_sums_stay_in_registers(
        name, products, tmp_path, monkeypatch):
    for variable, value in (("TO", str(tmp_path)), ("PTX", "1"), ("PTXAS", "1")):
        monkeypatch.setenv(f"MOSAIC_GPU_DUMP_{variable}", value)
    product, a, b = products[name]
    lowered = jax.jit(product).trace(a, b).lower(lowering_platforms=("cuda",))
    program = lowered.compile(compiler_options={"xla_gpu_autotune_level": 0})
    ptx = "".join(path.read_text() for path in tmp_path.glob("*.ptx"))
    found = set(re.findall(r"(?:wgmma\.mma_async|mma\.sync)[\w.]*", ptx))
    assert found == {"wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3"}
    said = "".join(path.read_text() for path in tmp_path.glob("*.ptxas"))
    assert "0 bytes spill stores, 0 bytes spill loads" in said
    codes_and_scales = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((a, b)))
    assert program.memory_analysis().temp_size_in_bytes < 2 * codes_and_scales
