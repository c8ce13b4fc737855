"""Plans of the machine at hand, as `dsjax plan --here` prints them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dsjax.cli.plans import served
from dsjax.config import load
from dsjax.config.parallel import ParallelConfig
from dsjax.config.run import RunConfig, with_fields
from dsjax.disk import to_json
from dsjax.errors import UserError
from dsjax.terminal import Console

if TYPE_CHECKING:
    from dsjax.plan.cost.site import Site
    from dsjax.plan.here import Choice


def main(config: str | None, precision: str | None, tokens: float | None, is_json: bool) -> int:
    """Measure, choose and print; returns the exit status: 1 where nothing fits."""
    runs = [load.load(name) for name in ([config] if config else load.names())]
    runs = [run for run in runs if run.rl is None]
    if not runs:
        raise UserError(f"{config} learns from rewards, and --here times the step of dsjax train; "
                        "name a config that trains on text, as tiny")
    from dsjax.cli.process import devices

    devices.require()
    from dsjax.plan import here

    site = here.measure()
    made = [here.choose(_lent(run, precision, site), site, tokens) for run in runs]
    said = summary(site, made)
    if is_json:
        print(to_json(said))
    else:
        _print(said)
    return 0 if any(one.estimate for one in made) else 1


def _lent(run: RunConfig, precision: str | None, site: Site) -> RunConfig:
    """A config's run on one device; a CPU has no products of 8 bits, and none faster than wide."""
    asked = precision or ("fp32" if site.chip.platform == "cpu" else run.precision.matmul)
    return with_fields(
        run, train={"batch_size_start": None, "batch_size_ramp_steps": 0, "microbatches": 1},
        precision={"matmul": asked},
        parallel={"schedule": ParallelConfig().schedule, "pipe": 1, "data": 1, "fsdp": 1,
                  "expert": 1, "expert_nodes": 1, "interleave": False})


def summary(site: Site, made: list[Choice]) -> dict[str, Any]:
    """Everything that `--json` prints; rates are what was measured."""
    from dsjax.plan.cost import efficiency

    chip, share = site.chip, efficiency.PRODUCT.value
    return {
        "machine": site.kind, "free_bytes": chip.memory,
        "float32_flop_s": (chip.wide or 0.0) * share, "bfloat16_flop_s": chip.bf16 * share,
        "bytes_per_s": site.bandwidth * efficiency.MEMORY.value,
        "configs": [_choice(one) for one in made],
    }


def _choice(one: Choice) -> dict[str, Any]:
    run, made = one.run, one.estimate
    return {
        "config": run.name, "fits": made is not None, "needed_bytes": one.needed,
        "batch": run.train.batch_size, "length": run.train.seq_len,
        "microbatches": run.train.microbatches, "rows_at_once": one.rows,
        "precision": run.precision.matmul, "remat": run.machine.remat,
        "step_s": made and made.step, "tokens_per_s": made and made.tokens / made.step,
        "days": one.days if made else None,
    }


def _print(said: dict[str, Any]) -> None:
    console = Console()
    console.print(f"{said['machine']}, one device, measured: {said['float32_flop_s'] / 1e9:,.0f} "
                  f"GFLOP/s in float32, {said['bfloat16_flop_s'] / 1e9:,.0f} in bfloat16, "
                  f"{said['bytes_per_s'] / 1e9:,.1f} GB/s; {said['free_bytes'] / 1e9:,.1f} GB free")
    drawn = served.table("the fastest way to train that fits", "config", "GB", "rows at once",
                         "microbatches", "remat", "tokens/s", "s a step", "time")
    for one in said["configs"]:
        size = f"{one['needed_bytes'] / 1e9:,.1f}"
        if one["fits"]:
            drawn.add_row(one["config"], size, str(one["rows_at_once"]), str(one["microbatches"]),
                          one["remat"], f"{one['tokens_per_s']:,.0f}", f"{one['step_s']:,.3g}",
                          _lasting(one["days"]))
        else:
            drawn.add_row(one["config"], size, "does not fit", "", "", "", "", "")
    console.print_whole(drawn)


def _lasting(days: float) -> str:
    """A length of time in the unit that makes it a small number."""
    for size, unit in ((365.25, "years"), (1.0, "days"), (1 / 24, "hours"), (1 / 1440, "minutes")):
        if days >= 2 * size:
            return f"{days / size:,.0f} {unit}"
    return f"{days * 86400:,.0f} seconds"
