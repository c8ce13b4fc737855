"""Values of a layer that are kept for the backward pass, and those that are made again.

Layers name what is dear to make again (`checkpoint_name`); a policy is a list of names.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax

SAVED_BY_FULL = ("choice",)
"""Each token's experts, 4 bytes apiece: so that the gradient sets out to them before the block is
made again, which rounding could then send elsewhere."""

SAVED_BY_V3 = (*SAVED_BY_FULL, "residual", "latents", "attention", "swiglu_input", "expert_input")
"""Kept by V3 for the backward pass; norms, MLA up-projections and SwiGLU outputs are made again
(V3 report sec. 3.2.3)."""

SAVED = {"v3": SAVED_BY_V3, "full": SAVED_BY_FULL}

Rematerialize = Callable[..., Callable]
"""A layer's function, and `is_scanned` -> the same function with other memory."""


def keep_all(body: Callable, is_scanned: bool = True) -> Callable:
    """The policy `none`: all that the backward pass reads is kept."""
    return body


@functools.cache
def policy(name: str) -> Rematerialize:
    """Look a policy up: `none` keeps all, `v3` as the report, `full` input and choice of experts.

    Outside a scan the compiler would find the second computation equal to the first and keep the
    first's results; `is_scanned=False` forbids that.
    """
    if name == "none":
        return keep_all
    if name not in SAVED:
        raise ValueError(f"remat={name!r} is no policy; choose none, v3 or full")
    return functools.partial(_keep, SAVED[name])


def _keep(names: tuple[str, ...], body: Callable, is_scanned: bool = True) -> Callable:
    saved = jax.checkpoint_policies.save_only_these_names(*names)
    return jax.checkpoint(body, policy=saved, prevent_cse=not is_scanned)
