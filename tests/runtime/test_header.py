"""A run's choices for its machine: FP8 products of codes only where they are multiplied."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsjax.cli.benches import equal_layouts
from dsjax.config.machine import MachineConfig
from dsjax.config.parallel import ParallelConfig
from dsjax.config.run import PrecisionConfig
from dsjax.errors import UserError
from dsjax.numerics.scaled import Scaled
from dsjax.runtime import backend as backends
from dsjax.runtime import header, precision


def run_with(**machine):
    return dataclasses.replace(equal_layouts.RUN, precision=PrecisionConfig("fp8"),
                               machine=MachineConfig(**machine))


def a_device(platform, kind="", capability=None):
    return SimpleNamespace(platform=platform, device_kind=kind, compute_capability=capability)


@pytest.mark.parametrize(("device", "operands"), [
    (a_device("gpu", "NVIDIA H200", "9.0"), "hopper"),
    (a_device("gpu", "NVIDIA B200", "10.0"), "codes"),
    (a_device("gpu", "NVIDIA A100", "8.0"), "values"),
    (a_device("gpu", "AMD Instinct MI300X", "gfx942"), "values"),
    (a_device("tpu", "TPU7x"), "tpu"),
    (a_device("tpu", "TPU v5p"), "values"),
    (a_device("cpu", "cpu"), "values"),
])
def test_codes_are_multiplied_by_machines_that_can_unless_told_otherwise(device, operands):
    assert precision.fp8_operands(MachineConfig(), device) == operands
    for told in ("codes", "values"):
        assert precision.fp8_operands(MachineConfig(fp8_matmul=told), device) == told


@pytest.mark.parametrize("device", [a_device("cpu", "cpu"), a_device("gpu", "NVIDIA B200", "10.0"),
                                    a_device("tpu", "TPU v5p")], ids=lambda d: d.device_kind)
def test_the_kernel_is_refused_by_machines_it_is_not_for(device):
    with pytest.raises(UserError, match=f"Hopper.*{device.device_kind}; use auto"):
        precision.fp8_operands(MachineConfig(fp8_matmul="kernel"), device)


def test_a_backend_is_chosen_for_the_device_it_is_asked_for():
    hopper = backends.for_run(run_with(), device=a_device("gpu", "NVIDIA H200", "9.0"))
    assert hopper.precision is precision.fp8("hopper")
    assert backends.for_run(run_with()).precision is precision.fp8("values")


def test_the_header_tells_of_experts_where_there_are_some_and_what_is_dropped():
    def said(model):
        run = dataclasses.replace(equal_layouts.RUN, model=model)
        return header.describe(run, backends.for_run(run))

    model = equal_layouts.RUN.model
    assert said(model)["experts"].startswith("dropless")
    limited = dataclasses.replace(model, moe=dataclasses.replace(model.moe, capacity_factor=1.5))
    assert said(limited)["experts"].startswith("at most 1.5 x the mean load")
    dense = dataclasses.replace(model, moe=None, dense_layers=model.layers)
    assert "experts" not in said(dense)


def test_the_header_and_the_products_are_of_what_was_chosen():
    for told, kind, words in (("codes", Scaled, "8-bit codes"), ("values", jax.Array, "emulated")):
        run = run_with(fp8_matmul=told)
        backend = backends.for_run(run)
        assert isinstance(backend.precision.quantize_weight(jnp.ones((256, 128))), kind)
        assert words in header.describe(run, backend)["fp8"]


@pytest.mark.exhaustive  # every product of it is held in tests/numerics/test_codes.py
def test_a_step_of_codes_is_the_emulated_one_but_for_the_order_of_sums():
    (state_a, a), (state_b, b) = (
        equal_layouts.Stepper(ParallelConfig(), 1, run_with(fp8_matmul=told)).take("packed")
        for told in ("codes", "values")
    )
    np.testing.assert_allclose(a.next_token, b.next_token, rtol=1e-4)
    for got, wanted in zip(jax.tree.leaves(state_a.opt.mu), jax.tree.leaves(state_b.opt.mu)):
        got, wanted = np.asarray(got, np.float32), np.asarray(wanted, np.float32)
        assert np.linalg.norm(got - wanted) <= 1e-5 * np.linalg.norm(wanted)
