"""`dsjax demo`: train the tiny DeepSeek-V3 on Shakespeare and let it speak."""

from __future__ import annotations

import dataclasses
import time
from concurrent.futures import ThreadPoolExecutor

from rich.console import Console

USAGE = """usage: dsjax demo [--FIELD VALUE ...]

Train the `tiny` config (the complete DeepSeek-V3 architecture, 10 million parameters) on the works
of Shakespeare, compare it with a byte 5-gram, draw two pictures and let it write, with and without
speculative decoding by its multi-token prediction module. A few minutes on two CPU cores.
"""

PROMPTS = ("HAMLET. ", "The quality of ")


def run(argv: list[str]) -> int:
    """Train, compare, draw, speak; returns the exit status."""
    if argv and argv[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    from dsjax.config import load

    config = load.load("tiny")
    place = dataclasses.replace(config.place, out="runs/demo")
    config = load.override(dataclasses.replace(config, place=place), argv)
    from dsjax.cli.generate import speak
    from dsjax.cli.train import report
    from dsjax.evaluate import ngram
    from dsjax.train import corpus, loop

    console = Console()
    began = time.monotonic()
    outcome = loop.train(config, console)
    if not outcome.is_complete:
        return 128 + (outcome.signal or 0)
    with ThreadPoolExecutor(1) as other:
        parts = [[text.encode() for text in part] for part in corpus.texts(config)]
        baseline = other.submit(ngram.bits_per_byte, *parts)
        report(config, outcome, {"byte 5-gram (Witten-Bell)": baseline.result()}, console)
    for prompt in PROMPTS:
        speak(outcome.out, prompt, console)
    speak(outcome.out, PROMPTS[0], console, is_drafting=True)
    minutes, seconds = divmod(round(time.monotonic() - began), 60)
    console.print(
        f"\n{minutes} min {seconds} s. Go on with: dsjax generate {outcome.out} "
        '--prompt "ROMEO. " --draft'
    )
    return 0
