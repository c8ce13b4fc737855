"""The transformers side of the comparison, with its own loader and its own code; needs torch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers.modeling_layers import MtpModel

from tests.conformance.compare import GREEDY, Found

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
torch.set_num_threads(1)


def load(folder: Path) -> tuple[Any, dict[str, Any]]:
    """A model in float32 with plain attention, and what its loader had to say."""
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, dtype=torch.float32, attn_implementation="eager",
        experts_implementation="eager",
    )
    return model.eval(), info


def logits(model: Any, tokens: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(tokens, dtype=torch.long)).logits.numpy()


def everything(model: Any, tokens: np.ndarray) -> Found:
    """Logits, its own loss, the gradient by released names (its experts are stacked), MTP."""
    ids = torch.tensor(tokens, dtype=torch.long)
    model.zero_grad()
    value = model(ids, labels=ids).loss
    value.backward()
    made: dict[str, np.ndarray] = {}
    for name, parameter in model.named_parameters():
        gradient = parameter.grad.numpy()
        if name.endswith("experts.gate_up_proj"):
            for i, joined in enumerate(gradient):
                gate, up = np.split(joined, 2)
                prefix = name.removesuffix("gate_up_proj") + f"{i}."
                made |= {prefix + "gate_proj.weight": gate, prefix + "up_proj.weight": up}
        elif name.endswith("experts.down_proj"):
            prefix = name.removesuffix("down_proj")
            made |= {f"{prefix}{i}.down_proj.weight": g for i, g in enumerate(gradient)}
        else:
            made[name] = gradient
    return Found(logits(model, tokens), float(value.detach()), made, mtp_logits(model, tokens))


def greedy(model: Any, prompt: np.ndarray, **more: Any) -> list[int]:
    ids = torch.tensor(prompt[None], dtype=torch.long)
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=GREEDY, min_new_tokens=GREEDY,
        do_sample=False, pad_token_id=0, **more,
    )
    return out[0, prompt.size :].tolist()


@contextlib.contextmanager
def mtp_at(model: Any) -> Iterator[None]:
    """Let transformers look for MTP modules where a model of this many layers has them.

    It knows their names by a pattern of the released model's, `model.layers.61.*`.
    """
    first = model.config.num_hidden_layers
    former = model._keys_to_ignore_on_load_unexpected
    numbers = range(first, first + model.config.num_mtp_layers)
    model._keys_to_ignore_on_load_unexpected = [rf"model\.layers\.{n}\..*" for n in numbers]
    try:
        yield
    finally:
        model._keys_to_ignore_on_load_unexpected = former


def mtp_logits(model: Any, tokens: np.ndarray) -> list[np.ndarray]:
    """Logits of every MTP module: module k reads tokens i+k and the states of module k-1."""
    if not getattr(model.config, "num_mtp_layers", 0):
        return []
    ids = torch.tensor(tokens, dtype=torch.long)
    with torch.no_grad(), mtp_at(model):
        modules = MtpModel.from_pretrained(model)
        modules.eval()
        modules.config._attn_implementation = "eager"
        previous = model(ids, output_hidden_states=True).hidden_states[-1]
        made = []
        for depth in range(len(modules.layers)):
            ahead, length = depth + 1, ids.shape[1] - depth - 1
            positions = torch.arange(ahead, ids.shape[1])[None]
            previous = modules.forward_layer(
                depth, previous[:, :length], positions, None, input_ids=ids[:, ahead:]
            )
            made.append(modules._project_to_logits(previous).numpy())
    return made
