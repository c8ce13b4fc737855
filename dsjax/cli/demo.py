"""`dsjax demo`: train the tiny DeepSeek-V3 on Shakespeare and let it speak."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from dsjax.cli.process import devices
from dsjax.cli.process.arguments import myself
from dsjax.config import load
from dsjax.config.flags.flag_tree import Mark
from dsjax.config.run import RunConfig
from dsjax.disk import to_json

if TYPE_CHECKING:  # the loop costs a second to import
    from dsjax.infer import Report
    from dsjax.train.outcome import Outcome

PROMPTS = ("HAMLET.\n", "To be, or not to")


def _tiny() -> RunConfig:
    config = load.load("tiny")
    return dataclasses.replace(config, output=dataclasses.replace(config.output,
                                                                  folder="runs/demo"))


@dataclass(frozen=True)
class Demo:
    """Train a small DeepSeek-V3 on the works of Shakespeare and let it write.

    It is the `tiny` config (the complete architecture, 10 million parameters), compared with a byte
    5-gram, drawn in two pictures, and decoded with and without drafts of its multi-token prediction
    module. A few minutes on two CPU cores. Any field of the run can be overridden.
    """

    run: Annotated[RunConfig, Mark.INLINE] = field(default_factory=_tiny)
    cache: bool = True
    """Keep compiled programs in a cache folder of yours, so that the next start is faster."""


def main(args: Demo) -> int:
    """Train, compare, draw, speak; returns the exit status."""
    config = args.run
    from dsjax.cli.generate import speak
    from dsjax.cli.train import report
    from dsjax.evaluate import ngram
    from dsjax.runtime import cpu
    from dsjax.terminal import Console
    from dsjax.train import corpus, loop

    devices.require()
    cpu.dispatch_inline()
    console = Console()
    began = time.monotonic()
    outcome = loop.train(config, console)
    if not outcome.is_complete:
        return 128 + (outcome.signal or 0)
    training, heldout = ([text.encode() for text in part] for part in corpus.texts(config))
    five_gram = ngram.cost(training, heldout)
    if not outcome.was_finished:
        report(config, outcome, {"byte 5-gram (Witten-Bell)": five_gram}, console)
    console.print()
    for prompt in PROMPTS:
        speak(outcome.out, prompt, console)
    drafted = speak(outcome.out, PROMPTS[0], console, is_drafting=True)
    seconds = time.monotonic() - began
    if not outcome.was_finished:
        summarize(outcome, five_gram, drafted, seconds)
    console.print(f"{seconds / 60:.1f} minutes. Go on with: {myself()} generate {outcome.out} "
                  "--prompt ROMEO. --draft", highlight=False, markup=False, soft_wrap=True)
    return 0


def summarize(outcome: Outcome, five_gram: float, drafted: Report, seconds: float) -> None:
    """Write summary.json: what the demo reached, for the record in the README."""
    assert outcome.heldout is not None, "a complete run has been evaluated"
    average = outcome.heldout_average
    summary = {
        "bits_per_byte": outcome.heldout.bits_per_byte,
        "bits_per_byte_average": average.bits_per_byte if average else None,
        "five_gram": five_gram,
        "steps": outcome.step,
        "mtp_acceptance": outcome.heldout.acceptance[0],
        "tokens_per_pass": drafted.tokens_per_pass,
        "seconds": seconds,
    }
    (outcome.out / "summary.json").write_text(to_json(summary, indent=1) + "\n")
