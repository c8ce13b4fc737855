"""Positions up to which a model was made: those it was trained at, or YaRN stretches it to.

A longer context is not refused, as there are uses for it, but said: rotary angles that training
never saw give nonsense beyond them (V3 report sec. 4.3 trains anew for each longer context).
"""

from __future__ import annotations

from dsjax.config.model import ModelConfig
from dsjax.infer.model import Model


def reach(cfg: ModelConfig, trained: int) -> int:
    """Positions that a model trained on rows of `trained` was made for."""
    yarn = cfg.rope.yarn
    return trained if yarn is None else max(trained, int(yarn.factor * yarn.original_length))


def remark(model: Model, context: int | None) -> str | None:
    """Say that a context goes beyond what a model was made for; None where it does not."""
    made_for = reach(model.cfg, model.context)
    if context is None or context <= made_for:
        return None
    yarn = model.cfg.rope.yarn
    how = (f"and it has no YaRN ({made_for:,} positions)" if yarn is None else
           f"and past what its YaRN stretches to ({made_for:,} positions)")
    return (f"--context {context:,} is past what this model was trained for, {how}: do not expect "
            "it to use what lies further back; train it on longer rows with "
            f"--model.rope.yarn.factor {max(2, -(-context // _original(model)))} first, or give "
            f"--context {made_for}")


def _original(model: Model) -> int:
    yarn = model.cfg.rope.yarn
    return model.context if yarn is None else yarn.original_length
