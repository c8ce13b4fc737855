"""Devices as a mesh with named axes, and what has to divide for a run to lie on it.

    data    replicas; no layer talks over it, only gradients and ZeRO's gathers do
    fsdp    holders of a matrix's parts; one gather a layer
    node    nodes that share the experts; one stage of the all-to-all (V3 report sec. 3.2.2)
    expert  devices of a node that share its experts; the other stage
    pipe    ranks of a pipeline, neighbors in its order; only where a layout has one (pipeline.py)

Every device holds whole rows of a batch, cut over all axes but `pipe`: attention never crosses a
device.
Neighboring devices lie along `expert`, whose exchanges are the most frequent. All axes are Auto:
the compiler partitions a program written for one device, so that its meaning, and with it every
loss and metric, is that of one device; only the experts' exchange is written by hand (expert.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dsjax.config.fields import choices
from dsjax.config.model import ModelConfig
from dsjax.config.parallel import ParallelConfig
from dsjax.errors import UserError

PIPE, DATA, FSDP, NODE, EXPERT = "pipe", "data", "fsdp", "node", "expert"
AXES = (DATA, FSDP, NODE, EXPERT)
EXPERTS = (NODE, EXPERT)
SIZES = "--parallel.pipe, --parallel.data, --parallel.fsdp and --parallel.expert"


def make_mesh(layout: ParallelConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of a layout on the first of the given devices (default: all there are).

    Several processes must be used whole: each has devices, and each takes part in every step.
    """
    found = list(jax.devices() if devices is None else devices)
    if layout.devices > len(found):
        makes = ""
        if devices is None and jax.process_count() == 1 and found[0].platform == "cpu":
            makes = f"--devices {layout.devices} makes so many of this CPU, to try it; or "
        raise UserError(
            f"the layout {layout} needs {layout.devices} devices and there are {len(found)}; "
            f"{makes}choose {SIZES} whose product is at most {len(found)}"
        )
    if devices is None and jax.process_count() > 1 and layout.devices != len(found):
        raise UserError(
            f"the layout {layout} leaves devices of {jax.process_count()} processes idle; choose "
            f"{SIZES} whose product is {len(found)}"
        )
    shape: tuple[int, ...] = (
        layout.data, layout.fsdp, layout.expert_nodes, layout.expert // layout.expert_nodes,
    )
    axes: tuple[str, ...] = AXES
    if layout.pipe > 1:
        shape, axes = (layout.pipe, *shape), (PIPE, *AXES)
    placed = mesh_utils.create_device_mesh(
        shape, found[: layout.devices], allow_split_physical_axes=True)  # of a TPU's torus
    return Mesh(placed, axes, axis_types=(AxisType.Auto,) * len(axes))


def sharding(mesh: Mesh, *axes: Any) -> NamedSharding:
    """A sharding by the mesh axes of each dim."""
    return NamedSharding(mesh, PartitionSpec(*axes))


def check(layout: ParallelConfig, model: ModelConfig, rows: Sequence[int],
          microbatches: int, flag: str = "--parallel") -> None:
    """Refuse a layout that a run does not divide over.

    rows: every batch size the run has; flag: the words that the layout is chosen by.
    """
    if layout.expert > 1 and model.moe is None:
        raise UserError(f"the model has no experts to share over {flag}.expert "
                        f"{layout.expert}; use 1")
    if model.moe is not None and model.moe.experts % layout.expert:
        raise UserError(
            f"{model.moe.experts} experts do not divide over {flag}.expert {layout.expert}; "
            f"choose from {choices(model.moe.experts, layout.expert)}"
        )
    if model.d_model % layout.fsdp:
        raise UserError(
            f"--model.d-model {model.d_model} does not divide over {flag}.fsdp {layout.fsdp}; "
            f"choose from {choices(model.d_model, layout.fsdp)}"
        )
    share = layout.row_devices * microbatches
    for batch in rows:
        if batch % share:
            below, above = batch // share * share, -(-batch // share) * share
            near = " or ".join(str(n) for n in (below, above) if n)
            raise UserError(
                f"a batch of {batch} rows does not divide over {layout.row_devices} devices x "
                f"{microbatches} microbatches ({layout}); use {near} rows (--train.batch-size), or "
                "fewer devices"
            )
