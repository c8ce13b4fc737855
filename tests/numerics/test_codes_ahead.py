"""Compiled for an H200 and for TPU v7, products of codes read 8-bit floats; needs the compilers.

`pip install --no-deps jax-cuda12-plugin jax-cuda12-pjrt nvidia-cuda-nvcc-cu12` of jax's version,
and `pip install --no-deps libtpu`; no GPU or TPU. Without its compiler each is skipped.
"""

import importlib.util
import re

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dsjax.numerics import codes, gemm

PRODUCTS = gemm.precision(gemm.V3_1, codes.MATMUL)
M, K, N = 512, 384, 256

H200 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448 threads_per_core_limit: 2048
  core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 thread_dim_limit_x: 1024 thread_dim_limit_y: 1024
  thread_dim_limit_z: 64 registers_per_core_limit: 65536 registers_per_block_limit: 65536
  memory_bandwidth: 4800000000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 151397597184 device_vendor: "NVIDIA Corporation" name: "NVIDIA H200"
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
  platform_version: "Compute Capability 9.0a" device_address_bits: 64
  driver_version: "12.9.0" runtime_version: "12.9.0" compile_time_toolkit_version: "12.9.0"
  dnn_version: "9.10.0"
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 10 } device_description_str: "NVIDIA H200"
"""


def is_installed(name):
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


@pytest.fixture(params=["cuda", "tpu"])
def target(request, monkeypatch):
    """The platform, a sharding on one of its devices, and what the compiler is asked."""
    if request.param == "cuda":
        if not is_installed("jax_plugins.xla_cuda12"):
            pytest.skip("no compiler for GPUs: pip install --no-deps jax-cuda12-plugin")
        topology = topologies.get_topology_desc(
            platform="cuda", topology_name="h200", target_config=H200, topology="1x1x1")
        options = {"xla_gpu_autotune_level": 0}
    else:
        if not is_installed("libtpu"):
            pytest.skip("no compiler for TPUs: pip install --no-deps libtpu")
        for name, value in (("SKIP_MDS_QUERY", "1"), ("LOG_DIR", "disabled"), ("WORKER_ID", "0"),
                            ("ACCELERATOR_TYPE", "tpu7x-8"), ("WORKER_HOSTNAMES", "localhost")):
            monkeypatch.setenv(f"TPU_{name}", value)
        topology = topologies.get_topology_desc(platform="tpu", topology_name="tpu7x:2x2x1")
        options = None
    mesh = Mesh(topology.devices, ("x",))
    return request.param, NamedSharding(mesh, PartitionSpec()), options


def test_every_product_reads_8_bit_floats(target):
    platform, sharding, options = target

    def placed(f, *shape):
        quantized = jax.eval_shape(f, jax.ShapeDtypeStruct(shape, jnp.float32))
        return jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), quantized)

    x, w = placed(PRODUCTS.quantize_for_fprop, M, K), placed(PRODUCTS.quantize_weight, K, N)
    turned, grad = placed(PRODUCTS.quantize_for_wgrad, M, K), placed(PRODUCTS.quantize_grad, M, N)
    for product, a, b, summed in [(PRODUCTS.fprop, x, w, K), (PRODUCTS.dgrad, grad, w, N),
                                  (PRODUCTS.wgrad, turned, grad, M)]:
        lowered = jax.jit(product).trace(a, b).lower(lowering_platforms=(platform,))
        text = lowered.compile(compiler_options=options).as_text()
        types = dict(re.findall(r"(%[\w.-]+) = (\w+)\[", text))
        dots = re.findall(r"(?:dot|convolution)\((%[\w.-]+), (%[\w.-]+)\)", text)
        assert len(dots) == summed // 128
        assert {types[name] for pair in dots for name in pair} == {"f8e4m3fn"}
