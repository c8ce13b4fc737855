"""From a trained model to text.

Reading order: sample (logits -> a distribution -> a token), penalties, decode (prefill in the
expanded form, steps in the absorbed form), speculative (rounds drafted by the MTP modules),
programs (what is compiled), inputs (what the host asks for, as arrays), generate (prompts ->
completions), model (the weights of a folder on the devices there are), reach (positions that a
model was made for); then offload/, for routed experts that are larger than the device, engine/,
which serves any mixture of requests by the same steps over pages, and bench (how fast).
"""

from dsjax.infer.decode import cache_bytes_per_token
from dsjax.infer.generate import Completion, Generation, Options, Report, check, generate
from dsjax.infer.model import Choice, Model, load
from dsjax.infer.offload.cache import Counts, Room
from dsjax.infer.sample import Sampling, SamplingParams
from dsjax.runtime.backend import decoding, default_backend

__all__ = [
    "Choice",
    "Completion",
    "Counts",
    "Generation",
    "Model",
    "Options",
    "Report",
    "Room",
    "Sampling",
    "SamplingParams",
    "cache_bytes_per_token",
    "check",
    "decoding",
    "default_backend",
    "generate",
    "load",
]
