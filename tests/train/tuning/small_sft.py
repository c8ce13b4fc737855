"""A tuning run that takes seconds: a drawn model of two layers, and examples of a few words."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dsjax import weights
from dsjax.config.run import RunConfig
from dsjax.config.schedule import LearningRate
from dsjax.data.tokenizers import tokenizer
from dsjax.model import transformer
from dsjax.released import hf
from dsjax.terminal import Console
from dsjax.train import loop
from dsjax.train.tuning import recipe
from tests.serve.conftest import END, TEMPLATE
from tests.train.small_run import MODEL

TEXT = "Question: what is a sum? Answer: it is what you get when you add. speak the speech. " * 3
STEPS = 4


def make_base(folder: Path, is_fp8: bool = False, chats: bool = True) -> Path:
    """Write a released checkpoint of drawn weights, with tokenizer and chat template."""
    attention = dataclasses.replace(MODEL.attention, latent_norm_eps=MODEL.norm_eps)
    cfg = dataclasses.replace(MODEL, attention=attention)
    hf.save(folder, cfg, transformer.init(cfg, jax.random.key(3)), fp8=is_fp8)
    words = tokenizer.train_bpe([TEXT], MODEL.vocab)
    words.save(folder / "tokenizer.json")
    settings: dict[str, Any] = {"bos_token": {"content": END}, "eos_token": END}
    if chats:
        settings["chat_template"] = TEMPLATE
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write lines of JSON."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_sums(path: Path, count: int = 40) -> Path:
    """Write examples whose answer follows from their question."""
    draw = np.random.default_rng(0)
    pairs = [(int(a), int(b)) for a, b in draw.integers(0, 10, (count, 2))]
    return write(path, [{"prompt": f"what is {a} add {b}? ", "completion": f"it is {(a + b) % 10}."}
                        for a, b in pairs])


def configured(base: Path, data: Path, out: Path, **fields: Any) -> RunConfig:
    """A run of four steps; `fields` are of the RunConfig."""
    run = recipe.start(base, STEPS)
    return recipe.settled(dataclasses.replace(
        run, **{"learning_rate": LearningRate(peak=1e-2)} | fields,
        train=dataclasses.replace(run.train, batch_size=4, seq_len=40),
        data=dataclasses.replace(run.data, train=str(data), heldout_fraction=0.1),
        output=dataclasses.replace(run.output, folder=str(out), save_every=2, log_every=1,
                                   eval_every=0, keep=9)))


def tune(run: RunConfig) -> str:
    """Run or go on; what was said."""
    told = io.StringIO()
    loop.train(run, Console(file=told, width=400))
    return told.getvalue()


def held(folder: Path, model: Any, dtype: str = "float32") -> dict[str, np.ndarray]:
    """A folder's weights by name, as every reader gets them."""
    from dsjax import params

    found = weights.load(folder, dtype, choice=weights.Choice(model=model),
                         say=lambda sentence: None)
    return {name: np.asarray(a) for name, a in params.paths(found)}
