"""One run, one writer: the folder is held while a run trains, and nothing is touched before that.

The first process takes the folder, and what it decides there - that another run has it, that the
checkpoints are of another config, that there is nothing left to do - holds for all processes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from dsjax import disk, weights
from dsjax.config.run import RunConfig
from dsjax.train import heartbeat, tasks
from dsjax.train.folder import identity, resume
from dsjax.train.tuning import rows

REMEDY = "wait for its end, stop it, or name another --output.folder"


@contextlib.contextmanager
def holding(run: RunConfig, out: Path) -> Iterator[bool]:
    """Hold a run's folder while the block runs; the value: whether there is anything to do.

    Where there is not, nothing is held. Raises UserError in every process where the folder is
    another process's, or another run's.
    """
    with contextlib.ExitStack() as stack:
        yield heartbeat.agree(lambda: _take(stack, run, out)) != FINISHED


FINISHED = "finished"


def _take(stack: contextlib.ExitStack, run: RunConfig, out: Path) -> str:
    """Hold the folder; what it holds is judged before it is touched, and again when it is held."""
    resume.refuse_another(run, out)
    if resume.is_finished(run, out):
        return FINISHED
    resume.refuse_fewer_steps(run, out)
    rows.refuse(run, out)
    tasks.read(run)
    if run.init_from is not None and not identity.is_going_on(out):
        weights.refuse_another(run.init_from, run.model)
    checkpoints = out / "checkpoints"
    if os.path.lexists(checkpoints):
        disk.make_folder(checkpoints, "move that away, or name another --output.folder")
    stack.enter_context(_folder(out))
    resume.refuse_another(run, out)
    resume.refuse_fewer_steps(run, out)
    return ""


@contextlib.contextmanager
def _folder(out: Path) -> Iterator[None]:
    """Make and hold a folder; one that was made here and stays empty is removed again."""
    missing = [path for path in (out, *out.parents) if not path.exists()]
    disk.make_folder(out, "name another --output.folder")
    with disk.held(out, REMEDY):
        try:
            yield
        finally:
            if missing and [path.name for path in out.iterdir()] == [disk.LOCK]:
                (out / disk.LOCK).unlink()
                with contextlib.suppress(OSError):  # another's: not empty
                    for path in missing:
                        os.rmdir(path)
