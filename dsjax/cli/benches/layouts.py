"""`dsjax bench layouts` and `bench links`: what many devices compute, and what they exchange."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from dsjax.cli.process import devices
from dsjax.config.fields import counted
from dsjax.config.flags.flag_tree import Word
from dsjax.disk import to_json
from dsjax.errors import UserError


@dataclass(frozen=True)
class Layouts:
    """Compare a step on every data x fsdp x expert layout with one device.

    The layouts are of so many devices (virtual ones on a CPU), each with 1, 2 and 4 microbatches,
    packed and unpacked rows. Printed is the largest relative difference of loss, its parts,
    gradients, router biases and metrics. Some ten minutes on two cores.
    """

    devices: int = 8
    """Devices of each layout."""
    json: bool = False
    """Print one JSON line a layout."""


@dataclass(frozen=True)
class Links:
    """Count what dispatch and combine put on slow links (between nodes) and fast ones (within).

    Random tokens are routed over the experts of a config, by an all-to-all of one stage and of two.
    """

    config: Annotated[str, Word("[CONFIG]")] = "deepseek_v3"
    """A name, a file with one config() or the folder of a run; by default deepseek_v3."""
    devices: int = 64
    """Devices that share the experts."""
    nodes: int = 8
    """Nodes that the devices belong to."""
    tokens: int = 16384
    """Tokens that are routed."""
    json: bool = False
    """Print one JSON line for each number of stages (`hops`)."""

    def __post_init__(self) -> None:
        """Refuse sizes of nothing."""
        counted("Links", devices=self.devices, nodes=self.nodes, tokens=self.tokens)


def compare(args: Layouts) -> int:
    """Compare every layout with one device, and print the table."""
    devices.make(args.devices)
    import jax
    import numpy as np

    from dsjax.cli.benches import equal_layouts as compared

    devices.require()
    if jax.device_count() < args.devices:
        raise UserError(f"there are {jax.device_count()} devices; use --devices of at most that")
    names = ("loss", "parts", "gradients", "bias", "metrics")
    if not args.json:
        print(f"{'data':>4} {'fsdp':>4} {'expert':>6}  " + " ".join(f"{n:>9}" for n in names))
    worst = 0.0
    for layout, found in compared.compare_all(args.devices):
        row = {name: float(np.max([getattr(d, name) for d in found])) for name in names}
        worst = float(np.max([worst, *row.values()]))
        axes = {"data": layout.data, "fsdp": layout.fsdp, "expert": layout.expert}
        if args.json:
            more = {"extra_rounds": sum(d.extra_rounds for d in found), "steps": len(found)}
            print(to_json(axes | row | more), flush=True)
        else:
            print(f"{layout.data:>4} {layout.fsdp:>4} {layout.expert:>6}  "
                  + " ".join(f"{row[n]:>9.1e}" for n in names), flush=True)
    return 0 if worst < compared.TOLERANCE else 1


def count(args: Links) -> int:
    """Count bytes on slow and fast links, and print them."""
    devices.require()
    for row in traffic(args.config, args.devices, args.nodes, args.tokens):
        if args.json:
            print(to_json(row))
        else:
            print(f"{row['hops']} stage{'s' if row['hops'] > 1 else ' '}: a token is on at most "
                  f"{row['most_nodes']} nodes, {row['slow_copies']:.2f} copies over slow links "
                  f"({row['slow_bytes']:,} bytes), {row['fast_copies']:.2f} over fast ones "
                  f"({row['fast_bytes']:,} bytes)")
    return 0


def traffic(config: str, devices: int, nodes: int, tokens: int) -> list[dict[str, Any]]:
    """Copies and bytes a token and layer, forward, in one stage and two; FP8 out, bf16 back."""
    import jax
    import numpy as np

    from dsjax.config import load
    from dsjax.layers.router import open_groups
    from dsjax.numerics.wire import FP8_WIRE
    from dsjax.parallel import comm_volume as links

    model = load.load(config).model
    if model.moe is None or model.moe.experts % devices or devices % nodes:
        raise UserError(f"the experts of {config} do not divide over {devices} devices of {nodes} "
                        "nodes; choose --devices that divides the experts, --nodes the devices")
    affinity = jax.random.uniform(jax.random.key(0), (1, tokens, model.moe.experts))
    chosen = jax.lax.top_k(open_groups(affinity, model.moe), model.moe.experts_per_token)[1]
    rows = []
    for stages in (1, 2):
        found = links.count(np.asarray(chosen[0]), model.moe.experts, devices, nodes, stages)
        size = found.bytes(FP8_WIRE, model.d_model, model.moe.experts_per_token, 2)
        rows.append({"hops": stages, "most_nodes": found.most_nodes, "slow_copies": found.slow,
                     "fast_copies": found.fast, "slow_bytes": size["slow"],
                     "fast_bytes": size["fast"]})
    return rows
