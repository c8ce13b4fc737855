"""Flags of commands that use a trained model, and the model that they ask for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

from dsjax.cli.process import devices, experts
from dsjax.cli.process.experts import ExpertFlags
from dsjax.config.flags.flag_tree import Mark
from dsjax.config.parallel import ParallelConfig

if TYPE_CHECKING:  # jax costs a second to import
    from dsjax.infer import Model


@dataclass(frozen=True)
class ModelFlags:
    """Numbers and devices of a model."""

    end_token: str | None = None
    """Name of the token that ends a text, where no file beside the tokenizer names it."""
    precision: Literal["fp32", "tf32", "bf16", "fp8"] | None = None
    """Operands of the matrix products; by default the run's own, fp32 for a released checkpoint."""
    experts: Annotated[ExpertFlags, Mark.INLINE] = field(default_factory=ExpertFlags)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    devices: int | None = None
    """Make so many virtual devices of the CPU, to try a layout on."""


def find_devices(flags: ModelFlags) -> None:
    """Make the devices that are asked for, and look for them."""
    if flags.devices is not None:
        devices.make(flags.devices)
    devices.require()


def load(folder: str, flags: ModelFlags) -> Model:
    """A folder's model, on its devices."""
    from dsjax import infer

    room = experts.room(flags.experts, folder)
    model = infer.load(folder,
                       infer.Choice(flags.precision, flags.parallel, flags.end_token, room))
    devices.say_if_idle(flags.parallel, is_asked=flags.devices is not None)
    return model
