"""Balance of devices that share experts on skewed traffic, with copies and without.

The first traffic is measured without copies. Its loads say where copies go; they serve the second
traffic, drawn alike but anew, which is also served without.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from configs import tiny
from dsjax.config.parallel import ParallelConfig
from dsjax.config.run import PrecisionConfig
from dsjax.infer import Model, Sampling
from dsjax.infer.engine.device import Device, Setting
from dsjax.infer.engine.engine import Engine
from dsjax.model import transformer
from dsjax.parallel import mesh as meshes
from dsjax.parallel import rules
from dsjax.runtime.backend import for_decoding
from experiments.common.command import Asked

LAYOUT = ParallelConfig(data=2, expert=4)
SETTING = Setting(slots=4, max_len=128, top_logprobs=1)
WORDS = 24
"""Ids that the traffic's texts are made of, by Zipf's law: few, so that few experts are asked."""


def main(asked: Asked) -> None:
    """Serve two traffics and write the record."""
    cfg = tiny.config().model
    mesh, specs = meshes.make_mesh(LAYOUT), transformer.specs(cfg)
    params = jax.device_put(transformer.init(cfg, jax.random.key(0)),
                            rules.used_shardings(specs, mesh))
    model = Model(cfg, params, None, 128,  # type: ignore[arg-type]
                  for_decoding(cfg, PrecisionConfig("fp32"), LAYOUT, mesh), mesh, LAYOUT)
    plain = Device(model, SETTING)
    first, _ = serve(plain, 1)
    loads = np.asarray(first.expert_loads())
    wanted, texts = serve(plain, 2)
    assert cfg.moe is not None, "a mixture has experts"
    rows = [row("one of each, in order", cfg.moe.experts, wanted, True)]
    for copies in (8,) if asked.is_quick else (0, 4, 8, 16):
        device = Device(model, Setting(**vars(SETTING) | {"redundant_experts": copies}), loads)
        engine, found = serve(device, 2)
        name = "placed by EPLB" if not copies else f"EPLB with {copies} redundant ones"
        rows.append(row(name, cfg.moe.experts + copies, engine, found == texts))
    asked.write("copies", "tokens of the busiest of four devices over the mean one, mean over "
                "layers; loads measured on one traffic, served is another of its kind",
                ("experts", "physical", "busiest device / mean", "tokens as without copies"), rows)


def row(name: str, physical: int, engine: Engine, is_same: bool) -> list[Any]:
    """A row of the record."""
    same = "all" if is_same else "not all"
    return [name, physical, f"{engine.stats().experts_busiest:.2f}", same]


def serve(device: Device, seed: int) -> tuple[Engine, list[list[int]]]:
    """Serve 64 requests of few words; the engine and the texts it made."""
    engine, draw = Engine(device), np.random.default_rng(seed)
    texts: list[list[int]] = []
    ids = np.random.default_rng(0).permutation(device.cfg.vocab)[:WORDS]
    share = 1 / np.arange(1, WORDS + 1)
    for number in range(64):
        text: list[int] = []
        texts.append(text)
        prompt = draw.choice(ids, 48, p=share / share.sum()).tolist()
        engine.add(prompt, Sampling(0.7, max_new_tokens=16, seed=number),
                   lambda output, text=text: text.extend(output.tokens))
    while engine.step():
        pass
    engine.expert_loads()
    return engine, texts
