"""Which checkpoint to read: found by one process, and the same for all that run together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from dsjax.checkpoint import files
from dsjax.checkpoint.files import Damaged, Manifest
from dsjax.errors import UserError

Say = Callable[[str], None]


def newest(folder: Path, say: Say, *, is_ours: bool,
           check: Callable[[Path], Manifest] = files.verify) -> Manifest:
    """Manifest of the newest checkpoint that is as written.

    is_ours: the damaged ones after it are moved aside, so that training goes on from it.
    check: reads a checkpoint's manifest, and raises Damaged; `files.read` looks at no array.
    """
    damaged: dict[int, Damaged] = {}
    for step in reversed(files.steps(folder)):
        try:
            manifest = check(folder / files.name(step))
        except Damaged as why:
            damaged[step] = why
            continue
        for bad, reason in damaged.items():
            aside = f" and is kept as {files.set_aside(folder, bad).name}" if is_ours else ""
            say(f"checkpoint {bad} is damaged ({reason}){aside}; going back to checkpoint {step}")
        return manifest
    if not damaged:
        raise UserError(f"there is no checkpoint in {folder}; train first or give another run")
    reasons = ", ".join(f"checkpoint {bad}: {reason}" for bad, reason in damaged.items())
    raise UserError(
        f"no checkpoint in {folder} can be read ({reasons}); move the folder away to start again"
    )


def agreed(folder: Path, say: Say) -> Manifest:
    """The newest checkpoint that is as written, found by the first process and taken by all."""
    if jax.process_count() == 1:
        return newest(folder, say, is_ours=True)
    found: Manifest | UserError | None = None
    if jax.process_index() == 0:
        try:
            found = newest(folder, say, is_ours=True)
        except UserError as error:
            found = error
    mine = found.step if isinstance(found, Manifest) else -1
    step = int(multihost_utils.broadcast_one_to_all(np.int32(mine)))
    if isinstance(found, UserError):
        raise found
    if step < 0:
        raise UserError(f"the first process found no checkpoint to read in {folder}; see its words")
    return found or files.read(folder / files.name(step))


def meet() -> None:
    """Wait for all processes."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("checkpoint")
