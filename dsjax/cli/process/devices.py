"""The devices of this machine: made where they are virtual, and missed in a sentence."""

from __future__ import annotations

import os

from dsjax.config.fields import shown
from dsjax.disk import cause
from dsjax.errors import UserError

MOST = 4096


def make(count: int) -> None:
    """Make so many virtual devices of the CPU, before JAX has looked for any."""
    if not 1 <= count <= MOST:
        raise UserError(f"--devices {shown(count)} is not a number from 1 up to {MOST:,}; give one")
    import jax

    jax.config.update("jax_num_cpu_devices", count)


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
