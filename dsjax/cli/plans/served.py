"""Plans of serving, and the ladder of claims, as `dsjax plan` prints them."""

from __future__ import annotations

import dataclasses
from typing import Any

from rich import box
from rich.table import Table

from dsjax.config.run import RunConfig, with_fields
from dsjax.disk import to_json
from dsjax.errors import UserError
from dsjax.terminal import Console


def table(title: str, *heads: str) -> Table:
    """An empty table whose first column is words."""
    drawn = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for at, head in enumerate(heads):
        drawn.add_column(head, justify="right" if at else "left", no_wrap=True)
    return drawn


def decode(run: RunConfig, on: str, rows: int, context: int, is_json: bool) -> int:
    """Print what a unit decodes and reads; returns 1 where a device has no room."""
    from dsjax.plan.cost import serving, site

    where = site.parse(on)
    spread = _spread(run, where.devices)
    unit = with_fields(run, parallel={"expert": spread})
    made, read = serving.decode(unit, where, rows, context), serving.read(unit, where, context)
    said: dict[str, Any] = {
        "config": run.name, "machine": on, "experts_over": spread, "rows": rows,
        "context": context, **dataclasses.asdict(made), "step_s": made.step, "fits": made.fits,
        "tokens_per_s_per_row": 1 / made.step, "tokens_per_s_per_device": rows / made.step,
        "prompt_tokens_per_s_per_device": read,
        "streamed_tokens_per_s": None if run.model.moe is None else {
            name: serving.streamed(run, rate) for name, rate in HOSTS.items()}}
    if is_json:
        print(to_json(said))
    else:
        _print(said, made.fits)
    return 0 if made.fits else 1


HOSTS = {"PCIe 4.0 x16, 32 GB/s": 32e9, "PCIe 5.0 x16, 64 GB/s": 64e9,
         "two channels of DDR5, 90 GB/s": 90e9, "twelve channels of DDR5, 500 GB/s": 500e9}
"""Ways of experts in the host's memory, in bytes/s; the last two where the host multiplies."""


def _spread(run: RunConfig, devices: int) -> int:
    """Devices that the experts are spread over; some may have a copy more than others."""
    moe = run.model.moe
    if moe is None:
        return 1
    if devices > moe.experts:
        raise UserError(f"{devices} devices are more than {moe.experts} experts; plan a unit of "
                        "fewer, and as many units as you like")
    return devices


def _print(said: dict[str, Any], fits: bool) -> None:
    console = Console()
    console.print(f"{said['config']} on {said['machine']}: experts over {said['experts_over']} "
                  f"devices, {said['rows']} rows of {said['context']:,} positions a device; a "
                  "bound: no queue, even experts")
    drawn = table(f"a decoding step: {1e3 * said['step_s']:.1f} ms", "part", "ms")
    for name, words in (("weights", "products and weights"), ("attention", "cache and scores"),
                        ("links", "exchanges, beside the two above")):
        drawn.add_row(words, f"{1e3 * said[name]:.1f}")
    room = table("a device", "kind", "GB")
    for name, words in (("weight_bytes", "weights"), ("cache_bytes", "caches"),
                        ("limit", "of")):
        room.add_row(words, f"{said[name] / 1e9:.1f}")
    console.print_whole(drawn, room)
    console.print(f"{said['tokens_per_s_per_row']:,.0f} tokens/s a row, "
                  f"{said['tokens_per_s_per_device']:,.0f} a device; prompts are read at "
                  f"{said['prompt_tokens_per_s_per_device']:,.0f} tokens/s a device")
    if said["streamed_tokens_per_s"] is not None:
        drawn = table("one row, routed experts in the host's memory", "over", "tokens/s at most")
        for name, rate in said["streamed_tokens_per_s"].items():
            drawn.add_row(name, f"{rate:.1f}")
        console.print_whole(drawn)
    if not fits:
        console.print("does not fit: fewer --decode rows, a shorter --context, or more devices")


def claims(is_json: bool) -> int:
    """Print the ladder of claims and what a node serves."""
    from dsjax.plan.evidence import claims as cost

    rungs, nodes = cost.ladder(), cost.served()
    training, serving = cost.product(rungs)
    if is_json:
        print(to_json({"ladder": [dataclasses.asdict(rung) for rung in rungs],
                       "training": training, "serving": serving, "said": cost.SAID,
                       "served": [dataclasses.asdict(node) for node in nodes]}))
        return 0
    drawn = table("times cheaper than the step before", "step", "training", "serving", "kind",
                  "source")
    for rung in rungs:
        drawn.add_row(rung.name, f"{rung.training:.2f}", f"{rung.serving:.2f}", rung.kind,
                      rung.source)
    drawn.add_row("together", f"{training:.1f}", f"{serving:,.0f}", "", "")
    node = table("a node of 8 H800, tokens/s", "of", "bound", "online", "share",
                 "$ a million")
    for one in nodes:
        node.add_row(one.name, f"{one.bound:,.0f}", f"{one.online:,.0f}",
                     f"{one.online / one.bound:.2f}", f"{one.dollars:.2f}")
    Console().print_whole(drawn, node)
    return 0
