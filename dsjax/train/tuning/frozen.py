"""Weights that rest while a part learns: where they come from, and what checkpoints keep of them.

Frozen weights lie where parameters do, in the numbers that the run asks for. They are no part of a
checkpoint: that holds what has learnt, and the identity of the weights it stands on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from dsjax import weights
from dsjax.config.run import RunConfig
from dsjax.model import transformer, tuned
from dsjax.model.transformer import TransformerParams
from dsjax.parallel import rules
from dsjax.params import Tree
from dsjax.train import sharding
from dsjax.train.folder import identity, resume
from dsjax.train.state import TrainState


@dataclass(frozen=True)
class Frozen:
    """Weights that rest while a part learns; `params` is None where all of a model learns."""

    params: TransformerParams | None = None
    identity: str | None = None

    def given(self, learnt: Tree) -> Any:
        """Argument of programs that only read a model: its parameters, or both parts of them."""
        return learnt if self.params is None else (learnt, self.params)

    def extra(self) -> dict[str, Any]:
        """Data of it beside the arrays of a checkpoint."""
        return {} if self.params is None else {weights.BASE: self.identity}


def settled(run: RunConfig, out: Path) -> RunConfig:
    """The run with the experts that its folder has chosen, where it goes on."""
    if run.experts is None or run.experts.chosen is not None:
        return run
    kept = resume.kept_config(out)
    if kept is None or kept.experts is None:
        return run
    chosen = kept.experts.chosen
    return dataclasses.replace(run, experts=dataclasses.replace(run.experts, chosen=chosen))


def load(run: RunConfig, out: Path, mesh: Mesh | None, say: Callable[[str], Any]) -> Frozen:
    """Read the weights that a run freezes onto its devices; none where all of them learn.

    Raises:
        UserError: they are not those that the run in `out` has learnt a part of.
    """
    if not tuned.is_partial(run):
        return Frozen()
    where = None
    if mesh is not None:
        where = rules.stored_shardings(transformer.specs(run.model), mesh,
                                       use_zero=run.parallel.use_zero)
    was = identity.kept(out).get(weights.BASE)
    held = weights.load_base(run, where, say=say, was=was)
    size = sum(a.nbytes for a in jax.tree.leaves(held))
    say(f"frozen: the weights of {run.init_from}, {size / 1e9:.3g} GB, without gradients, moments "
        "or masters")
    return Frozen(held, weights.identity(str(run.init_from)))


def begin(run: RunConfig, frozen: Frozen, mesh: Mesh | None, say: Callable[[str], Any]
          ) -> TrainState:
    """Return the state before the first step: see `resume.begin`; of a part, adapters that do
    nothing yet, or copies of the experts that learn."""
    if frozen.params is None:
        return resume.begin(run, say, mesh)
    if run.lora is not None:
        return sharding.init(run, mesh)
    where = None if mesh is None else sharding.state_shardings(run, mesh).params
    start = jax.jit(lambda p: tuned.copied(run, p), out_shardings=where)(frozen.params)
    return sharding.begin(run, start, mesh)
