"""A machine of so many chips of one kind, by name: `h800:2048`, `gb200:256`, `tpu7x:128`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from dsjax.config.fields import did_you_mean
from dsjax.errors import UserError
from dsjax.runtime.hardware import CHIPS, Chip, Fabric


@dataclass(frozen=True)
class Site:
    """Chips of one kind, and the links between them."""

    kind: str  # of CHIPS, or what JAX calls a device that was measured
    chips: int
    measured: Chip | None = None  # in the place of a data sheet

    @property
    def chip(self) -> Chip:
        """Data sheet of one device, or what was measured of it."""
        return self.measured or CHIPS[self.kind]

    @property
    def devices(self) -> int:
        """Devices as JAX counts them: a TPU7x has two."""
        return self.chips * self.chip.cores

    @property
    def fabric(self) -> Fabric:
        """Links of one device."""
        assert self.chip.fabric is not None, "every kind in KINDS has links"
        return self.chip.fabric

    @property
    def bandwidth(self) -> int:
        """Bytes/s of one device's memory."""
        assert self.chip.bandwidth is not None, "every kind in KINDS has a rate of its memory"
        return self.chip.bandwidth


KINDS = tuple(name for name, chip in CHIPS.items() if chip.fabric and chip.bandwidth)


def parse(name: str) -> Site:
    """A site from its name; refused in a sentence with the nearest kind."""
    kind, _, sizes = name.lower().partition(":")
    kind = {"v7x": "tpu7x"}.get(kind, kind)
    if kind not in KINDS:
        raise UserError(f"{kind!r} is no machine here{did_you_mean(kind, KINDS)}; choose one of "
                        f"{', '.join(KINDS)}, and how many, as in h800:2048")
    if not re.fullmatch(r"[1-9]\d{0,8}(x[1-9]\d{0,5}){0,2}", sizes):
        raise UserError(f"{name!r} does not say how many; write {kind}:8, or nodes x devices as "
                        f"in {kind}:256x8")
    chips = 1
    for size in sizes.split("x"):
        chips *= int(size)
    return Site(kind, chips)
