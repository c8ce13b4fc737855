"""Plans for the machine at hand: its rates are measured, its free memory is asked for.

A measured device stands in the place of a data sheet (`Site.measured`), so that a step is timed by
the same arithmetic. Measured rates are ones that programs reach; a sheet's are not, so a measured
rate is divided by the share that `efficiency` takes of a sheet's. No factor is fitted.

Memory: `dsjax.runtime.needs` counts what a step surely needs, and compilers ask for up to
`fit.ASKED` times as much, as `dsjax train` also expects; a step fits here if that is free.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from dsjax.config.fields import divisors
from dsjax.config.run import RunConfig, with_fields
from dsjax.errors import UserError
from dsjax.plan.cost import bill, efficiency
from dsjax.plan.cost.efficiency import Stack
from dsjax.plan.cost.search import REMAT
from dsjax.plan.cost.site import Site
from dsjax.plan.cost.step import Estimate, estimate
from dsjax.runtime import fit, free_memory, hardware, needs
from dsjax.runtime.hardware import Chip, Fabric

HERE = Stack("here", 1.0, "nothing")
"""Programs of this machine, by the measured rates alone."""
SIDES = {"cpu": 1024}  # of the square products that are timed; 8192 on accelerators
STREAM = {"cpu": 2**26}  # numbers of the array that is read and written; 2**29 on accelerators


@dataclass(frozen=True)
class Choice:
    """Outcome of a config on this machine; without an estimate where it does not fit."""

    run: RunConfig
    needed: int  # bytes: of a CPU or an accelerator, `fit.ASKED` times what is surely needed
    estimate: Estimate | None = None
    days: float = 0.0

    @property
    def rows(self) -> int:
        """Rows that go through the device at once."""
        return self.run.train.batch_size // self.run.train.microbatches


def measure(budget_s: float = 0.5) -> Site:
    """Measure the first device of this process: products, memory's rate, and what is free.

    budget_s: seconds for each rate. Raises UserError where the device does not say its memory.
    """
    device = jax.devices()[0]
    room = free_memory.of([device])
    if room is None:
        raise UserError(f"a {device.device_kind} does not say how much memory is free; name the "
                        "machine with --on instead")
    side = SIDES.get(device.platform, 8192)
    wide, narrow = (hardware.measure_matmul(side, dtype, budget_s)
                    for dtype in ("float32", "bfloat16"))
    if device.platform == "cpu":  # a program may always multiply in float32
        narrow = max(wide, narrow)
    sheet = hardware.chip_of(device.device_kind)
    fp8 = None
    if sheet is not None and sheet.fp8 is not None:  # as much more as the sheet says
        fp8 = narrow * sheet.fp8 / sheet.bf16
    rate = int(_stream(STREAM.get(device.platform, 2**29), budget_s) / efficiency.MEMORY.value)
    share = efficiency.PRODUCT.value
    chip = Chip(
        {"cpu": "cpu", "tpu": "tpu"}.get(device.platform, "cuda"),  # type: ignore[arg-type]
        (device.device_kind,), room.free, narrow / share, None if fp8 is None else fp8 / share,
        "measured", bandwidth=rate, fabric=Fabric(rate, 1, rate, "one device"), wide=wide / share)
    return Site(device.device_kind, 1, chip)


def _stream(numbers: int, budget_s: float) -> float:
    """Highest rate, in bytes/s, of an array of float32 that is read and written."""
    x = jnp.zeros(numbers, jnp.float32)
    scale = jax.jit(lambda x: x * 1.5 + 1.0, donate_argnums=0)
    x = scale(x).block_until_ready()
    best, end = 0.0, time.perf_counter() + budget_s
    while (began := time.perf_counter()) < end:
        x = scale(x).block_until_ready()
        best = max(best, 2 * 4 * numbers / (time.perf_counter() - began))
    return best


def choose(run: RunConfig, site: Site, tokens: float | None = None) -> Choice:
    """The fastest recomputation and number of microbatches of a run that fit a measured device.

    The batch stays as it is. tokens: of the whole run; by default all that it trains on.
    """
    tried = list(_fitting(run, site))
    if not tried:
        least = with_fields(run, train={"microbatches": run.train.batch_size},
                            machine={"remat": "full"})
        return Choice(least, needed(least))
    made = [Choice(one, needed(one), estimate(one, site, HERE)) for one in tried]
    best = min(made, key=lambda one: one.estimate.step if one.estimate else 0.0)
    assert best.estimate is not None, "every one that fits is timed"
    return Choice(best.run, best.needed, best.estimate,
                  bill.bill(best.run, site, best.estimate, tokens).days)


def needed(run: RunConfig) -> int:
    """Bytes that the compiler of a run's step is expected to ask for on one device."""
    found = needs.training(run)
    return fit.ASKED * found.least + found.average


def _fitting(run: RunConfig, site: Site) -> Iterator[RunConfig]:
    """Of each kind of recomputation the fewest microbatches that fit."""
    for remat in REMAT:
        for count in divisors(run.train.batch_size):
            one = with_fields(run, train={"microbatches": count}, machine={"remat": remat})
            if needed(one) <= site.chip.memory:
                yield one
                break
