"""Bytes a token that released shapes cache in bfloat16, from their configs and by formula."""

from __future__ import annotations

from configs import deepseek_v2, deepseek_v3
from dsjax.model import count
from experiments.common.command import Asked
from experiments.common.small import verdicts
from experiments.common.small.answer import said

DENSE = {
    "DeepSeek 67B": (95, 8, 128),
    "Qwen2.5 72B": (80, 8, 128),
    "Llama 3.1 405B": (126, 8, 128),
}
"""Layers, key-value heads and channels of a head: arXiv 2401.02954 Table 2; 2505.09343 Table 1."""
CUT, TIMES = 93.3, {"Qwen2.5 72B": 4.66, "Llama 3.1 405B": 7.28}
BITS = 6
"""Bits of a cached number that V2 is served with (V2 sec. 3.2.3): its report's cut counts them."""


def main(asked: Asked) -> None:
    """Count, judge and write the record."""
    own = {"DeepSeek-V2": deepseek_v2.config().model, "DeepSeek-V3": deepseek_v3.config().model}
    size = {name: 2 * model.layers * count.cached_numbers(model) for name, model in own.items()}
    size |= {name: 2 * 2 * layers * heads * dim for name, (layers, heads, dim) in DENSE.items()}
    equal = 100 * (1 - size["DeepSeek-V2"] / size["DeepSeek 67B"])
    cut = 100 * (1 - size["DeepSeek-V2"] * BITS / 16 / size["DeepSeek 67B"])
    times = {name: size[name] / size["DeepSeek-V3"] for name in TIMES}
    is_cut = abs(cut - CUT) < 0.05
    are_times = all(abs(times[name] / told - 1) < 0.01 for name, told in TIMES.items())
    asked.write(
        "cache", "bytes a token that released shapes cache",
        ("model", "bytes a token", "times V3's", "V2 against it, 16 bits each",
         "V2's in 6 bits against it"),
        [[name, f"{one:,}", f"{one / size['DeepSeek-V3']:.2f}",
          f"{100 * (size['DeepSeek-V2'] / one - 1):+.1f} %",
          f"{100 * (size['DeepSeek-V2'] * BITS / 16 / one - 1):+.1f} %"]
         for name, one in size.items()],
        verdicts={
            "cut": said(verdicts.SUPPORTS if is_cut else verdicts.CONTRADICTS,
                        f"{cut:.1f} % with V2's numbers in {BITS} bits; {equal:.1f} % at 16 bits "
                        "in both"),
            "times": said(verdicts.SUPPORTS if are_times else verdicts.CONTRADICTS,
                          " and ".join(f"{one:.2f}" for one in times.values())),
        })
