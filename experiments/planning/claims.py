"""The ladder from a dense float32 model to V3, and what a node serves."""

from __future__ import annotations

from dsjax.plan.evidence import claims
from experiments.common.command import Asked


def main(asked: Asked) -> None:
    """Write both records."""
    rungs = claims.ladder()
    training, serving = claims.product(rungs)
    asked.write("claims", "times cheaper than the step before",
                ["step", "training", "serving", "kind", "source"],
                [*([r.name, f"{r.training:.2f}", f"{r.serving:.2f}", r.kind, r.source]
                   for r in rungs), ["together", f"{training:.1f}", f"{serving:,.0f}", "", ""]])
    asked.write("served", "tokens/s of a node of 8 H800, planned as a bound and online",
                ["of", "bound", "online", "share", "dollars a million"],
                [[s.name, f"{s.bound:,.0f}", f"{s.online:,.0f}", f"{s.online / s.bound:.2f}",
                  f"{s.dollars:.2f}"] for s in claims.served()])
