"""The engine of `dsjax serve` and `dsjax chat`, and the flags by which it is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

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

    def __post_init__(self) -> None:
        """Refuse what serves nobody."""
        for name, least in (("slots", 1), ("queue", 0), ("pages", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"--{name} {value} must be at least {least}; give more")
        if self.context is not None and self.context < 2:
            raise UserError(f"--context {self.context} has no room for a prompt and a new token; "
                            "it must be at least 2")


def make(model: Model, flags: EngineFlags) -> Any:
    """The engine of a model."""
    from dsjax.infer.engine.device import Device, Setting
    from dsjax.infer.engine.engine import Engine

    device = Device(model, Setting(
        slots=flags.slots, max_queue=flags.queue, max_len=flags.context, draft=flags.draft,
        pages=flags.pages, page_dtype=flags.page_dtype, is_deterministic=flags.deterministic))
    if not device.is_invariant:
        say("dsjax: on this machine, or with so few pages, it is not shown that an answer's last "
            "bits do not depend on who else is served")
    return Engine(device)
