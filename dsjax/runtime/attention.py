"""The expanded attention of a run on this machine: plain blocks, or a vendor's flash kernel."""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal

import jax

from dsjax.config.machine import MachineConfig
from dsjax.config.model import GQAConfig, MLAConfig
from dsjax.config.run import RunConfig
from dsjax.errors import UserError
from dsjax.layers.backend import Attend, Backend
from dsjax.runtime.precision import HOPPER, cuda_capability

Form = Literal["blocks", "cudnn"]


def form(machine: MachineConfig, is_low: bool, device: jax.Device) -> Form:
    """The attention that a device runs; `is_low` where products are of bfloat16 or narrower.

    The kernel is for bfloat16: a run in float32 keeps its blocks, and asking it for the kernel is
    refused. Documents that are packed, and heads wider than 128, need a Hopper GPU. Later ones may
    lack a backward pass for heads padded to 192 channels (NVIDIA's table of cuDNN's sizes): there
    the kernel is taken where it is asked for, and not by itself.
    """
    capability = cuda_capability(device) or 0
    has_kernel = capability >= HOPPER
    if machine.attention == "kernel":
        if not has_kernel:
            raise UserError("--machine.attention kernel is for NVIDIA GPUs from Hopper on, and this"
                            f" is {device.device_kind}; use auto or blocks")
        if not is_low:
            raise UserError("--machine.attention kernel multiplies bfloat16, and the products of "
                            "this run are float32; use --precision bf16 or fp8, or auto")
    if machine.attention == "kernel":
        return "cudnn"
    return "cudnn" if capability == HOPPER and is_low and machine.attention == "auto" else "blocks"


def on(backend: Backend, machine: MachineConfig, device: jax.Device) -> Backend:
    """A backend with the attention of a device."""
    if form(machine, _is_low(backend), device) == "blocks":
        return backend
    return dataclasses.replace(backend, attend=_flash(backend.attend, machine.documents))


def _flash(plain: Attend, documents: int) -> Attend:
    from dsjax.kernels import cudnn, flash

    return functools.partial(flash.attend, choice=flash.Choice(cudnn.CUDNN, plain, documents))


def _is_low(backend: Backend) -> bool:
    return backend.precision.operand_dtype is not None


def _widest(attention: MLAConfig | GQAConfig) -> int:
    """Channels of the wider of a head's scores and values."""
    if isinstance(attention, GQAConfig):
        return attention.head_dim
    return max(attention.nope_dim + attention.rope_dim, attention.value_dim)


def of_rows(run: RunConfig) -> MachineConfig:
    """A run's machine, told of one document a row where the run cuts its rows so."""
    is_one = run.data.packing == "concat" and run.rl is None and run.sft is None
    return dataclasses.replace(run.machine, documents=1) if is_one else run.machine


def describe(run: RunConfig, backend: Backend, device: jax.Device) -> str:
    """Say which attention a run has."""
    from dsjax.kernels.flash import WIDEST

    blocks = "blocks of 128 queries, probabilities made again in the backward pass"
    if form(run.machine, _is_low(backend), device) == "blocks":
        return blocks
    if (widest := _widest(run.model.attention)) > WIDEST:
        return f"{blocks}; heads of {widest} channels are more than the {WIDEST} of cuDNN's kernel"
    most = of_rows(run).documents
    rows = "rows of one document" if most == 1 else f"up to {most} documents a row"
    return f"cuDNN's flash kernel in bfloat16, {rows}; other rows in {blocks}"
