"""State of a run of reinforcement learning, saved after a step and restored to the bit.

A checkpoint holds the policy with its moments and, where there is a KL, the reference. Questions
and samples are drawn from the run's seed and the number of the step alone, so nothing of them needs
to be kept: the step after a checkpoint asks the same questions and samples the same tokens again.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh

from dsjax.checkpoint import files, store
from dsjax.checkpoint.store import Store
from dsjax.config.rl import RLConfig
from dsjax.config.run import RunConfig, difference
from dsjax.data.tokenizers.tokenizer import Tokenizer
from dsjax.errors import UserError
from dsjax.model.transformer import TransformerParams
from dsjax.rl.tasks import catalog
from dsjax.rl.tasks.task import Task
from dsjax.rl.update import rl_of
from dsjax.train import sharding
from dsjax.train.folder import resume
from dsjax.train.state import TrainState

MAY_CHANGE = ("steps", "samples_every", "eval_every", "eval_prompts", "pass_samples", "engine",
              "engine_apart")
"""Fields of a run that goes on that may be others than before."""
PROBLEMS = "problems"
"""Key of the hash of a file's problems in a checkpoint's extra."""


@struct.dataclass
class RLState:
    """Everything that a step changes."""

    train: TrainState
    reference: TransformerParams | None
    done: int = struct.field(pytree_node=False)
    """Rollouts."""


def begin(run: RunConfig, params: TransformerParams, mesh: Mesh | None) -> RLState:
    """Begin from parameters, which are the reference too and gone with the state."""
    reference = copied(params) if rl_of(run).kl_weight else None
    return RLState(sharding.begin(run, params, mesh), reference, 0)


def copied(params: TransformerParams) -> TransformerParams:
    """The same numbers in other buffers: a step takes the policy's donated."""
    return jax.tree.map(jnp.copy, params)


def save(folder: Store, state: RLState, words: Tokenizer, task: Task) -> None:
    """Start to save the state, with a hash of a file's problems."""
    kept: dict[str, Any] = {"train": state.train}
    if state.reference is not None:
        kept["reference"] = state.reference
    folder.save(state.done, kept, {store.TOKENIZER: words.fingerprint, PROBLEMS: task.fingerprint})


def restore(run: RunConfig, folder: Store, say: Any, mesh: Mesh | None) -> RLState:
    """Read the newest checkpoint that is as written, onto the run's devices.

    Raises:
        UserError: the file of problems is not the one that the run was taught from.
    """
    abstract: dict[str, Any] = {"train": sharding.abstract(run, mesh)}
    if rl_of(run).kl_weight:
        abstract["reference"] = abstract["train"].params
    done, saved, extra = folder.restore(abstract, say=say)
    task = catalog.taught(rl_of(run))
    if extra.get(PROBLEMS, task.fingerprint) != task.fingerprint:
        raise UserError(f"{task.source} holds other problems than when this run began, so it would "
                        "not be the same run; put the former file back, or name another "
                        "--output.folder")
    say(f"resuming after step {done}")
    return RLState(saved["train"], saved.get("reference"), done)


def steps_taken(out: Path) -> int:
    """Steps of a folder's newest checkpoint; 0 where it has none."""
    return max(files.steps(out / "checkpoints"), default=0)


def refuse_another(run: RunConfig, out: Path) -> None:
    """Refuse a folder that holds another run, by the first field that differs."""
    kept = resume.kept_config(out)
    if kept is None:
        return
    if kept.rl is None:
        raise UserError(f"{out} holds a run of dsjax train; name another --output.folder, and "
                        f"start from it by --init-from {out}")
    resume.refuse_another(run, out)
    said = difference(_identity(kept.rl), _identity(rl_of(run)), "rl")
    if said is not None:
        raise UserError(f"the run in {out} was made with {said}; give the config it was made with, "
                        "or another --output.folder")


def _identity(cfg: RLConfig) -> RLConfig:
    return dataclasses.replace(cfg, **{name: getattr(RLConfig(), name) for name in MAY_CHANGE})
