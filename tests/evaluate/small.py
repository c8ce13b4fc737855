"""A run folder of a drawn mixture of experts, and text for its tokenizer."""

import dataclasses

from dsjax.checkpoint.store import Store
from dsjax.config.run import RunConfig, TrainConfig
from dsjax.config.stored import run_to_json
from dsjax.data.tokenizers import tokenizer
from dsjax.model import transformer
from tests import agreement

CONTEXT = 64
CFG = dataclasses.replace(agreement.TINY, vocab=300, layers=2, mtp_depth=1)
TEXT = "Question: what is the answer?\nAnswer: it is 12 of 30, or #### 42.\n" * 3


def make_run(folder, seed=3, step=7, cfg=CFG):
    """Write a run's folder; another seed is another model."""
    store = Store(folder / "checkpoints", keep=1)
    store.save(step, {"params": agreement.draw(transformer.specs(cfg), seed)}, {})
    store.close()
    run_to_json(RunConfig("small", cfg, train=TrainConfig(seq_len=CONTEXT)),
                folder / "config.json")
    tokenizer.train_bpe([TEXT], 290).save(folder / "tokenizer.json")
    return folder
