"""Rows to the devices of an axis and back, inside a shard_map: what travels, and in what form.

A buffer has P parts of C rows, part p for device p of the axis; after the exchange part p is what
device p sent. That is its own inverse, so the gradient's exchange is the same one backwards. Parts
are filled from the front. `ragged` moves filled rows alone, by `ragged_all_to_all`, which a CPU
does not have: there the whole parts move, and either way an empty row arrives as zeros.

In what form rows travel is the precision's (`numerics.wire`).

Axes: P devices of the mesh axis, C rows of a part, D model.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import Array, lax

from dsjax.numerics.wire import Parcel, RowFormat


@dataclasses.dataclass(frozen=True)
class MeshAxis:
    """One axis of the mesh and how parts move along it."""

    name: str
    everywhere: tuple[str, ...]  # all axes of the mesh: what arrays vary over
    is_ragged: bool = True


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def exchange_rows(axis: MeshAxis, out: RowFormat, back: RowFormat, x: Array, sent: Array,
          received: Array) -> Array:
    """Move the rows x [P*C, D] in one form; their gradient comes back in the other.

    sent, received [P] int32: filled rows of each part here, and of what each device sends.
    """
    parcel = move(out.pack(x), sent, received, axis)
    return out.unpack(parcel, x.dtype)


def _exchange_rows_forward(axis, out, back, x, sent, received):
    return exchange_rows(axis, out, back, x, sent, received), (sent, received)


def _exchange_rows_backward(axis, out, back, kept, dx):
    sent, received = kept
    parcel = move(back.pack(dx), received, sent, axis)
    return back.unpack(parcel, dx.dtype), None, None


exchange_rows.defvjp(_exchange_rows_forward, _exchange_rows_backward)


def move(parcel: Parcel, sent: Array, received: Array, axis: MeshAxis) -> Parcel:
    """Exchange the parts of every array of a parcel; no gradient."""
    return jax.tree.map(lambda a: _move(a, sent, received, axis), parcel)


def counts(sent: Array, axis: MeshAxis) -> Array:
    """Filled rows of the parts that this device will receive. sent [P] -> [P]."""
    return lax.all_to_all(sent, axis.name, 0, 0, tiled=True)


def _move(a: Array, sent: Array, received: Array, axis: MeshAxis) -> Array:
    """Choose the form by the platform: where the mesh says it, before there is a program.

    `lax.platform_dependent` leaves a conditional of one branch around an exchange, which XLA does
    not take apart as it holds a collective; none could then run beside other work.
    """
    ragged, padded = (functools.partial(form, axis=axis) for form in (_ragged, _padded))
    if not axis.is_ragged:
        return padded(a, sent, received)
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    if device is not None and device.platform != "cpu":
        return ragged(a, sent, received)
    return lax.platform_dependent(a, sent, received, cpu=padded, default=ragged)


def _padded(a: Array, sent: Array, received: Array, *, axis: MeshAxis) -> Array:
    return lax.all_to_all(a, axis.name, 0, 0, tiled=True)


def _ragged(a: Array, sent: Array, received: Array, *, axis: MeshAxis) -> Array:
    devices = lax.axis_size(axis.name)
    rows = a.shape[0] // devices

    zeros = jnp.zeros_like(sent)  # which differ over the same axes as what is sent
    starts = zeros + jnp.arange(devices, dtype=jnp.int32) * rows
    mine = zeros + lax.axis_index(axis.name) * rows
    empty = jnp.zeros_like(a)
    return lax.ragged_all_to_all(a, empty, starts, sent, mine, received, axis_name=axis.name)
