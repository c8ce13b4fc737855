"""Compiled ahead, kernels multiply 8-bit floats and leave no partial sum in memory.

Needs the extras gpu-aot and tpu-aot, no GPU or TPU; each is skipped without. Nothing is run.
"""

import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dsjax.kernels import hopper, tpu
from dsjax.numerics import gemm
from dsjax.plan import target

M, K, N = 512, 1024, 640
OPTIONS = {"cuda": {"xla_gpu_autotune_level": 0}, "tpu": None}


def compiled(name, machine, kernel):
    """One product on one device of a machine: the program, and the bytes it reads."""
    found = target.parse(machine)
    module = {"cuda": "jax_plugins.xla_cuda12", "tpu": "libtpu"}[found.chip.platform]
    if not target.is_installed(module):
        pytest.skip(f"no compiler for {machine}: its extra is not installed")
    precision = gemm.precision(gemm.V3_1, kernel)
    mesh = Mesh(target.devices(found)[:1], ("x",))

    def placed(f, *shape):
        quantized = jax.eval_shape(f, jax.ShapeDtypeStruct(shape, jnp.float32))
        where = NamedSharding(mesh, PartitionSpec())
        return jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=where), quantized)

    x, w = placed(precision.quantize_for_fprop, M, K), placed(precision.quantize_weight, K, N)
    turned, grad = placed(precision.quantize_for_wgrad, M, K), placed(precision.quantize_grad, M, N)
    product, a, b = {"fprop": (precision.fprop, x, w), "dgrad": (precision.dgrad, grad, w),
                     "wgrad": (precision.wgrad, turned, grad)}[name]
    platform = found.chip.platform
    lowered = jax.jit(product).trace(a, b).lower(lowering_platforms=(platform,))
    read = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((a, b)))
    return lowered.compile(compiler_options=OPTIONS[platform]), read


@pytest.mark.parametrize("name", ["fprop", "dgrad", "wgrad"])
def test_on_hopper_products_are_the_tensor_core_s_and_sums_stay_in_registers(
        name, tmp_path, monkeypatch):
    for variable, value in (("TO", str(tmp_path)), ("PTX", "1"), ("PTXAS", "1")):
        monkeypatch.setenv(f"MOSAIC_GPU_DUMP_{variable}", value)
    program, read = compiled(name, "h200:1x1", hopper.MATMUL)
    ptx = "".join(path.read_text() for path in tmp_path.glob("*.ptx"))
    found = set(re.findall(r"(?:wgmma\.mma_async|mma\.sync)[\w.]*", ptx))
    assert found == {"wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3"}
    said = "".join(path.read_text() for path in tmp_path.glob("*.ptxas"))
    assert "0 bytes spill stores, 0 bytes spill loads" in said
    assert program.memory_analysis().temp_size_in_bytes < 2 * read


@pytest.mark.parametrize("name", ["fprop", "dgrad", "wgrad"])
def test_on_a_tpu_a_product_is_one_call_on_8_bit_floats(name):
    program, read = compiled(name, "tpu7x:2x2x1", tpu.MATMUL)
    calls = [line for line in program.as_text().splitlines() if "tpu_custom_call" in line]
    assert len(calls) == 1
    assert len(re.findall(r"f8e4m3fn\[", calls[0])) >= 2
    assert program.memory_analysis().temp_size_in_bytes < 2 * read
