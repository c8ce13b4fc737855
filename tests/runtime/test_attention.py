"""A run's attention is the kernel only where the machine has it and the products are narrow."""

import dataclasses
from types import SimpleNamespace

import pytest

from dsjax.cli.benches import equal_layouts
from dsjax.config.machine import MachineConfig
from dsjax.config.run import PrecisionConfig
from dsjax.errors import UserError
from dsjax.kernels import cudnn
from dsjax.runtime import attention
from dsjax.runtime import backend as backends

HOPPER = SimpleNamespace(platform="gpu", device_kind="NVIDIA H200", compute_capability="9.0")
BLACKWELL = SimpleNamespace(platform="gpu", device_kind="NVIDIA B200", compute_capability="10.0")
AMPERE = SimpleNamespace(platform="gpu", device_kind="NVIDIA A100", compute_capability="8.0")
AMD = SimpleNamespace(platform="gpu", device_kind="AMD Instinct MI300X",
                      compute_capability="gfx942")
CPU = SimpleNamespace(platform="cpu", device_kind="cpu")


def run_with(matmul="bf16", packing="concat", **machine):
    return dataclasses.replace(
        equal_layouts.RUN, precision=PrecisionConfig(matmul), machine=MachineConfig(**machine),
        data=dataclasses.replace(equal_layouts.RUN.data, packing=packing))


@pytest.mark.parametrize(("device", "matmul", "told", "found"), [
    (HOPPER, "bf16", "auto", "cudnn"), (HOPPER, "fp8", "auto", "cudnn"),
    (HOPPER, "bf16", "kernel", "cudnn"), (HOPPER, "bf16", "blocks", "blocks"),
    (BLACKWELL, "bf16", "auto", "blocks"), (BLACKWELL, "bf16", "kernel", "cudnn"),
    (HOPPER, "fp32", "auto", "blocks"), (HOPPER, "tf32", "auto", "blocks"),
    (AMPERE, "bf16", "auto", "blocks"), (AMD, "bf16", "auto", "blocks"),
    (CPU, "bf16", "auto", "blocks"),
])
def test_the_kernel_is_for_narrow_products_on_gpus_that_have_it(device, matmul, told, found):
    run = run_with(matmul, attention=told)
    backend = backends.for_run(run, device=device)
    choice = getattr(backend.attend, "keywords", {}).get("choice")
    assert (choice is not None) == (found == "cudnn")
    said = attention.describe(run, backend, device)
    assert said.startswith("cuDNN's" if found == "cudnn" else "blocks of 128")


@pytest.mark.parametrize(("device", "matmul", "words"), [
    (CPU, "bf16", "Hopper.*cpu; use auto"), (AMPERE, "bf16", "Hopper.*A100; use auto"),
    (HOPPER, "fp32", "bfloat16.*float32; use --precision bf16"),
])
def test_a_kernel_that_cannot_be_is_refused(device, matmul, words):
    with pytest.raises(UserError, match=words):
        backends.for_run(run_with(matmul, attention="kernel"), device=device)


def test_heads_that_are_too_wide_for_the_kernel_are_said():
    run = run_with()
    wide = dataclasses.replace(run.model.attention, nope_dim=252)  # and 4 with positions: 256
    for more, said in ((0, "cuDNN's"), (1, "blocks of 128")):
        of = dataclasses.replace(wide, nope_dim=wide.nope_dim + more)
        told = dataclasses.replace(run, model=dataclasses.replace(run.model, attention=of))
        backend = backends.for_run(told, device=HOPPER)
        assert attention.describe(told, backend, HOPPER).startswith(said)


@pytest.mark.parametrize(("packing", "told", "documents"), [
    ("concat", 16, 1), ("segments", 16, 16), ("segments", 5, 5),
])
def test_rows_are_said_as_the_run_cuts_them(packing, told, documents):
    run = run_with(packing=packing, documents=told)
    backend = backends.for_run(run, device=HOPPER)
    choice = backend.attend.keywords["choice"]
    assert choice.flash is cudnn.CUDNN
    assert choice.documents == documents
    words = "rows of one document" if documents == 1 else f"up to {documents} documents a row"
    assert words in attention.describe(run, backend, HOPPER)
