"""Prompt tokens a second, read at once or by the programs that decode, one after the other."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from configs import tiny
from dsjax.infer import Model, Sampling, default_backend
from dsjax.infer.engine.device import Device, Setting
from dsjax.infer.engine.engine import Engine
from dsjax.model import transformer
from experiments.common.command import Asked

WAYS = {
    "at once": {},
    "deterministic": {"is_deterministic": True},
    "at once, modules draft": {"draft": True},
    "deterministic, modules draft": {"is_deterministic": True, "draft": True},
}
LENGTH = 449


def main(asked: Asked) -> None:
    """Time prompts, of each way in turn, and write the record."""
    count, repeats = (2, 1) if asked.is_quick else (4, 7)
    cfg = tiny.config().model
    model = Model(cfg, transformer.init(cfg, jax.random.key(0)), None, 512, default_backend(), None)  # type: ignore[arg-type]
    devices = {name: Device(model, Setting(slots=16, **way)) for name, way in WAYS.items()}  # type: ignore[arg-type]
    found: dict[str, list[float]] = {name: [] for name in WAYS}
    draw = np.random.default_rng(0)
    for repeat in range(repeats + 1):
        texts = draw.integers(0, cfg.vocab, (count, LENGTH)).tolist()
        for name, device in devices.items():
            rate = read(device, texts)
            if repeat:  # the first warms up
                found[name].append(rate)
    first = statistics.median(found["at once"])
    rows: list[list[Any]] = [
        [name, device.setting.slots, f"{statistics.median(rates):,.0f}",
         f"{min(rates):,.0f} to {max(rates):,.0f}", f"{statistics.median(rates) / first:.2f}"]
        for (name, device), rates in zip(devices.items(), found.values(), strict=True)]
    asked.write("reading", f"prompts of {LENGTH} tokens, read at once or as they would be decoded, "
                "`tiny` in float32",
                ("prompts", "rows", "tokens/s", "spread", "of the first"), rows)


def read(device: Device, texts: Sequence[Sequence[int]]) -> float:
    """Prompt tokens a second of texts one after another, each with one token chosen."""
    engine = Engine(device)
    start = time.perf_counter()
    for text in texts:
        engine.add(text, Sampling(0.0, max_new_tokens=1), lambda _: None)
        while engine.step():
            pass
    return sum(map(len, texts)) / (time.perf_counter() - start)
