"""Machines: the processor that an experiment ran on, and those that it compiles for."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path

from dsjax.errors import UserError
from dsjax.plan import target


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Name the processor that runs this, as `AMD EPYC 9B14 (family 25, model 17)`.

    Virtual machines often give a name that says little, hence the numbers. Where Linux does not
    tell (`cpuinfo`), it is what Python knows: the architecture at least.
    """
    told: dict[str, str] = {}
    if cpuinfo.is_file():
        text = cpuinfo.read_text(encoding="utf-8", errors="replace").strip()
        for line in text.split("\n\n")[0].splitlines():  # the first core's
            name, _, value = line.partition(":")
            told[name.strip()] = " ".join(value.split())
    if "model name" not in told:
        return platform.processor() or platform.machine()
    numbers = [f"{word} {told[name]}" for word, name in (("family", "cpu family"),
                                                         ("model", "model")) if name in told]
    return told["model name"] + (f" ({', '.join(numbers)})" if numbers else "")


def busy_seconds(stat: Path = Path("/proc/stat")) -> float:
    """Seconds that all processors together have worked since the machine started.

    User, nice, system and interrupts, of every program; 0 where Linux does not tell (`stat`).
    """
    if not stat.is_file():
        return 0.0
    user, nice, system, _, _, hard, soft = map(int, stat.read_text().split()[1:8])
    return (user + nice + system + hard + soft) / os.sysconf("SC_CLK_TCK")


def require(names: Sequence[str]) -> None:
    """Refuse machines whose compiler is not installed, before any work."""
    for name in names:
        target.require(target.parse(name))


def here(names: Sequence[str]) -> list[str]:
    """Return those machines whose compiler is installed.

    Raises UserError where there is none.
    """
    found, refused = [], []
    for name in names:
        try:
            require([name])
            found.append(name)
        except UserError as error:
            refused.append(error)
    if not found:
        raise refused[0]
    return found
