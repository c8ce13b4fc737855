"""The engine of `dsjax serve` and `dsjax chat`, and the flags by which it is made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dsjax.disk import to_json, write_whole
from dsjax.errors import UserError, say

if TYPE_CHECKING:
    from dsjax.infer import Model


@dataclass(frozen=True)
class EngineFlags:
    """Room of the engine."""

    slots: int = 16
    """Requests that are answered at once on each device; others wait."""
    queue: int = 256
    """Requests that wait at most; one more is refused."""
    context: int | None = None
    """Positions a request may take; by default the row length of the training, or a released
    checkpoint's context."""
    draft: bool = False
    """Speculate with the model's MTP modules: the same distribution in fewer passes."""
    pages: int | None = None
    """Pages of 32 positions that the requests of a device share; by default enough for every slot's
    longest."""
    page_dtype: Literal["activations", "fp8"] = "activations"
    """Numbers in pages: as they are computed, or in 8 bits."""
    deterministic: bool = False
    """Read prompts by the programs that decode: an answer has the same bits whether its prompt was
    found in pages, cut otherwise or read again. Prompts are read more slowly."""
    redundant_experts: int = 0
    """Copies of the busiest experts, over the devices of --parallel.expert (V3: 32)."""
    save_expert_loads: Path | None = None
    """File for the loads of experts that were measured, at the end."""

    def __post_init__(self) -> None:
        """Refuse what serves nobody."""
        for name, least in (("slots", 1), ("queue", 0), ("pages", 1), ("redundant_experts", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                flag = name.replace("_", "-")
                raise UserError(f"--{flag} {value} must be at least {least}; give more")
        if self.context is not None and self.context < 2:
            raise UserError(f"--context {self.context} has no room for a prompt and a new token; "
                            "it must be at least 2")


def make(model: Model, flags: EngineFlags, expert_loads: Path | None,
         is_consumed: bool = False) -> Any:
    """The engine of a model; measured loads spread the experts over devices that share them.

    A consumed model's layers are the engine's from here on, and gone from the model.
    """
    from dsjax.infer.engine.device import Device, Setting
    from dsjax.infer.engine.engine import Engine

    loads = None
    if expert_loads is not None and model.experts is None:
        from dsjax.cli.loads import read

        loads = read(expert_loads).loads
    if flags.save_expert_loads is not None and model.layout.expert == 1:
        raise UserError(f"--save-expert-loads {flags.save_expert_loads} has nothing to save: loads "
                        "are measured where devices share the experts; use --parallel.expert")
    device = Device(model, Setting(
        slots=flags.slots, max_queue=flags.queue, max_len=flags.context, draft=flags.draft,
        pages=flags.pages, page_dtype=flags.page_dtype, is_deterministic=flags.deterministic,
        redundant_experts=flags.redundant_experts), loads, is_consumed)
    if not device.is_invariant:
        say("dsjax: on this machine, or with so few pages, it is not shown that an answer's last "
            "bits do not depend on who else is served")
    return Engine(device)


def save_loads(engine: Any, flags: EngineFlags) -> None:
    """Write the loads of experts that an engine has measured, where that was asked for."""
    path = flags.save_expert_loads
    if path is None:
        return
    loads = engine.expert_loads()
    if loads is None:
        say(f"dsjax: nothing was asked, so {path} was not written")
        return
    write_whole(path, to_json({"loads": loads}), "name another file as --save-expert-loads")
