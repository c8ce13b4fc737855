"""tiny_long: `tiny` made to read 32 times further, by YaRN in two phases.

The report takes V3 from 4K to 32K and from there to 128K in two phases of 1,000 steps with one
YaRN: scale s = 40, alpha = 1, beta = 32, temperature sqrt(t) = 0.1 ln s + 1, on the decoupled
shared key alone. Batches are 1,920 and then 480 rows, as many tokens a step; the rate is the last
of pre-training in both. Here every length is 32 times smaller: a `tiny` that was trained on rows of
128 tokens reads 1,024 after the first phase and 4,096 after the second. Rows a step go as the
report's, four to one. What YaRN changes has no parameters, so a phase starts from the folder of the
one before (--init-from), and the optimizer anew.

This file is the first phase. The second is the same with longer and fewer rows, from its folder.

    dsjax train tiny --train.seq-len 128 --train.batch-size 16 --output.folder runs/tiny_128
    dsjax train tiny_long --init-from runs/tiny_128 --output.folder runs/tiny_1k
    dsjax train tiny_long --init-from runs/tiny_1k --train.seq-len 4096 --train.batch-size 2 \\
        --output.folder runs/tiny_4k

At this size the ramp is coarse: of eight pairs of channels the fastest stays as it is, two are on
the ramp, and five, which never turn once in 128 tokens, are slowed 40 times.

Source: DeepSeek-V3 report (arXiv 2412.19437), sec. 4.3, lengths scaled down 32 times.
Machine: two CPU cores, minutes a phase; how long has not been measured.
Expect: 128 positions become 4,096; experiments/long_context measures it on a smaller model.
Command: dsjax train tiny_long --init-from runs/tiny_128
"""

import dataclasses

from dsjax.config.load import load
from dsjax.config.model import RopeConfig, YarnConfig
from dsjax.config.run import OutputConfig, RunConfig, TrainConfig
from dsjax.config.schedule import LearningRate

ORIGINAL = 128
"""Tokens of a row of the pre-training."""
FIRST, SECOND = 1024, 4096
"""Tokens of a row of the two phases."""
YARN = YarnConfig(factor=40.0, original_length=ORIGINAL, beta_fast=32.0, beta_slow=1.0)
"""One for both phases, as V3's."""
LAST_RATE = 1e-4
"""The last of `tiny`'s."""


def config() -> RunConfig:
    """The first phase."""
    short = load("tiny")
    return dataclasses.replace(
        short,
        name="tiny_long",
        model=dataclasses.replace(short.model, rope=RopeConfig(yarn=YARN)),
        train=TrainConfig(steps=100, batch_size=8, seq_len=FIRST),
        learning_rate=LearningRate(peak=LAST_RATE, low=LAST_RATE, last=LAST_RATE),
        optimizer=dataclasses.replace(short.optimizer, ema_decay=0.0),
        output=OutputConfig(eval_every=50, save_every=50),
    )
