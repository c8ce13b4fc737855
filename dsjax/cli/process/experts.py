"""Flags of commands that keep routed experts off the device, and the room they ask for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dsjax.errors import UserError

if TYPE_CHECKING:
    from dsjax.infer import Room

UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
         "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([KMGT]?I?B)", re.IGNORECASE)


@dataclass(frozen=True)
class ExpertFlags:
    """Place of the routed experts."""

    experts_cache: str | None = None
    """Room on the device for routed experts, as 2GB or 500MiB. The experts stay in a released
    checkpoint's files, or a run's in the host's memory, and the device holds those that were used
    last. By default it holds all of them."""
    expert_loads: Path | None = None
    """Measured loads of experts, as `dsjax loads` reads them: a run's folder or a JSON file. The
    heaviest experts fill the cache before the first token, by default by the run's newest
    evaluation; an engine on several devices spreads its experts by them."""
    predict_experts: bool = True
    """Fetch the experts that the next layer is predicted to choose while this one computes."""

    def __post_init__(self) -> None:
        """Refuse what is no size, and loads that nothing reads."""
        if self.experts_cache is None and not self.predict_experts:
            raise UserError("--no-predict-experts is about a cache of experts, and there is none; "
                            "give --experts-cache, as 2GB")
        if self.experts_cache is not None:
            nbytes(self.experts_cache)


def room(flags: ExpertFlags, folder: str) -> Room | None:
    """The room that flags ask for, with the loads that were measured of a folder's experts."""
    if flags.experts_cache is None:
        return None
    from dsjax.infer import Room

    return Room(nbytes(flags.experts_cache), _loads(flags, Path(folder)), flags.predict_experts)


def nbytes(text: str) -> int:
    """Bytes of a size as people write it: a number and a unit."""
    found = SIZE.fullmatch(text.strip())
    if found is None or len(text) > 40:
        raise UserError(f"--experts-cache is {text[:40]!r}, which is no size; give a number and a "
                        "unit, as 2GB, 1.5GiB or 500MB")
    return int(float(found[1]) * UNITS[found[2].upper()])


def _loads(flags: ExpertFlags, folder: Path) -> tuple[tuple[float, ...], ...] | None:
    """Loads of each mixture layer, of the file that is named or of the run, where it has some."""
    from dsjax.cli import loads

    source = flags.expert_loads
    if source is None:
        source = folder
        if not loads.has_loads(folder):
            return None
    found = loads.read(source)
    main = [row for row, label in zip(found.loads, found.labels) if not label.startswith("MTP")]
    return tuple(tuple(row.tolist()) for row in main)
