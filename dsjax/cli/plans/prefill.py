"""Report of `dsjax compile --prefill`: what a device needs to read a long prompt."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from dsjax.disk import to_json
from dsjax.terminal import Console

if TYPE_CHECKING:
    from dsjax.config.run import RunConfig
    from dsjax.plan.prefill import Plan
    from dsjax.plan.target import Target


def main(run: RunConfig, machine: Target, positions: int, piece: int, is_json: bool) -> int:
    """Compile and report; returns the exit status, 1 where a device has too little memory."""
    from dsjax.plan import prefill

    made = prefill.plan(run, machine, prefill.Prompt(positions, piece))
    said = summary(made)
    if is_json:
        print(to_json(said))
        return 0 if made.fits else 1
    console = Console()
    console.print(f"{said['config']} on {said['machine']}: {said['devices']} devices, "
                  f"{said['layout']}; each reads {positions:,} tokens, {piece:,} at once, "
                  f"{said['precision']}", highlight=False, soft_wrap=True)
    for kind, size in (*said["parts"].items(), ("together", said["bytes"]),
                       ("there is", said["limit"])):
        console.print(f"  {kind:<28}{size / 1e9:>8.2f} GB", highlight=False)
    console.print(f"{'fits' if made.fits else REMEDY}\n"
                  f"{'compiled' if said['compiled'] else 'refused by the compiler'} in "
                  f"{said['seconds']:.0f} s and {said['peak_memory'] / 1e9:.1f} GB; not run",
                  highlight=False, soft_wrap=True)
    return 0 if made.fits else 1


REMEDY = ("does not fit: share the experts over more devices (--parallel.expert), read less at "
          "once (--piece), or a shorter prompt (--prefill)")


def summary(made: Plan) -> dict[str, Any]:
    """Everything that `--json` prints; bytes are of one device."""
    from dsjax.plan.ahead import Compiled

    cost = made.result.cost
    return {
        "config": made.run.name, "machine": made.target.name, "devices": made.target.devices,
        "layout": str(made.run.parallel), "parallel": dataclasses.asdict(made.run.parallel),
        "layers": made.run.model.layers,
        "prefill": made.prompt.positions, "piece": made.prompt.piece,
        "precision": made.run.precision.matmul, "activations": made.run.precision.activations,
        "fits": made.fits, "bytes": made.total, "limit": made.limit, "parts": made.parts,
        "compiled": isinstance(made.result, Compiled), "seconds": round(cost.seconds, 1),
        "cpu_seconds": round(cost.cpu_seconds, 1), "peak_memory": cost.peak_memory,
    }
