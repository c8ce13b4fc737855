"""The devices of this machine: made where they are virtual, and missed in a sentence."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from dsjax.cli.process import streams
from dsjax.config.fields import shown
from dsjax.disk import cause
from dsjax.errors import UserError, say

if TYPE_CHECKING:  # jax costs a second to import
    from dsjax.config.parallel import ParallelConfig
    from dsjax.parallel.launch import Launch

MOST = 4096


def make(count: int) -> None:
    """Make so many virtual devices of the CPU, before JAX has looked for any."""
    if not 1 <= count <= MOST:
        raise UserError(f"--devices {shown(count)} is not a number from 1 up to {MOST:,}; give one")
    import jax

    jax.config.update("jax_num_cpu_devices", count)


def join(coordinator: str | None, processes: int | None, process: int | None) -> Launch | None:
    """Become one of several processes, where a launcher or the flags say so; return how."""
    from dsjax.parallel import launch

    found = launch.find(os.environ, coordinator, processes, process)
    if found is not None:
        streams.divert_libraries()
        launch.join(found)
    return found


def say_if_idle(layout: ParallelConfig, is_asked: bool) -> None:
    """Say that a layout leaves devices idle; of a CPU's virtual ones only where asked for."""
    import jax

    used, there = layout.devices, jax.device_count()
    is_chosen = is_asked or used > 1 or jax.default_backend() != "cpu"
    if used < there and is_chosen:
        say(f"dsjax: {used} of {there} devices {'is' if used == 1 else 'are'} used; "
            "--parallel.data, --parallel.fsdp and --parallel.expert choose the others too")


def require() -> None:
    """Look for devices now; refuse a platform that is not on this machine."""
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # a bare assertion where a plugin is missing
        asked = os.environ.get("JAX_PLATFORMS")
        why = "no plugin of it is installed" if isinstance(error, AssertionError) else cause(error)
        if asked:
            raise UserError(f"JAX_PLATFORMS={asked} names a platform that is not here ({why}); "
                            "unset it, or use JAX_PLATFORMS=cpu") from error
        raise UserError(f"no device can be used ({why}); JAX_PLATFORMS=cpu uses the "
                        "processor") from error
