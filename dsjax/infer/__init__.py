"""From a trained model to text.

Reading order: sample (logits -> a distribution -> a token), decode (prefill in the expanded form,
steps in the absorbed form), speculative (rounds drafted by the MTP modules), programs (what is
compiled), generate (prompts -> completions), bench (how fast).
"""

from dsjax.infer.bench import decode_bench
from dsjax.infer.decode import cache_bytes_per_token, decoding, default_backend
from dsjax.infer.generate import Completion, Report, check, generate, generate_with_report
from dsjax.infer.sample import Sampling

__all__ = [
    "Completion",
    "Report",
    "Sampling",
    "cache_bytes_per_token",
    "check",
    "decode_bench",
    "decoding",
    "default_backend",
    "generate",
    "generate_with_report",
]
