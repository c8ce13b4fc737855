"""`dsjax bench decode|prefill|serve`: the speed of inference at the shapes of `dsjax bench train`.

Random parameters and texts, greedy choices: the time does not depend on what is said. Of drafts,
which random modules guess at random, the time of a pass is measured; what they gain depends on the
model (docs/generation.md).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from dsjax.cli.benches.shapes import PRECISION, Bench, peak_rss, result, shape_run
from dsjax.config.fields import counted


@dataclass(frozen=True)
class Inference(Bench):
    """Settings of all three."""

    draft: bool = False
    """Let an MTP module draft a token in each pass."""
    repeats: int = 5
    """Times that the work is timed; medians are printed."""

    def __post_init__(self) -> None:
        """Refuse sizes of nothing."""
        super().__post_init__()
        counted(type(self).__name__, repeats=self.repeats)


class Decode(Inference):
    """Time greedy decoding from a latent cache and print one JSON line.

    Keys: tok_s (median over `repeats` programs of `steps` passes), ms_per_step, tokens_per_pass,
    compile_s, cache_bytes_per_token, peak_gflop_s (of square products), versions.
    """


class Prefill(Inference):
    """Time reading prompts into a latent cache and print one JSON line.

    Keys: tok_s (of the prompts, median), ms, compile_s, peak_gflop_s, versions.
    """

    def __post_init__(self) -> None:
        """Refuse steps, which a prompt has none of."""
        super().__post_init__()
        if self.steps is not None:
            raise ValueError(f"Prefill.steps={self.steps} are of decoding, and a prompt is read in "
                             "one program; leave it out, or give --repeats")


class Serve(Inference):
    """Time the engine with `batch_size` requests at once (16) and print one JSON line.

    Keys: tok_s (while all decode, medians over `repeats` times `steps` steps), ms_per_step,
    tokens_per_pass, prefill_tok_s (until each has a token), host_share (of a step's time, the
    host's own), compile_s, cache_bytes_per_token, peak_gflop_s, versions.
    """


def measure(args: Inference) -> dict[str, Any]:
    """Measure one of the three."""
    from dsjax.infer import Model, bench
    from dsjax.model import transformer
    from dsjax.params import key_of
    from dsjax.runtime import backend as backends
    from dsjax.runtime import hardware, header

    run = shape_run(args)
    model = dataclasses.replace(run.model, mtp_depth=int(args.draft))
    kind = type(args)
    batch = args.batch_size or (16 if kind is Serve else 1)
    load = bench.Load(batch, args.seq_len or 512, args.steps or 64, args.repeats, model.mtp_depth)
    params = transformer.init(model, key_of(args.seed))
    backend = backends.decoding(backends.for_run(run))
    # numbers in, numbers out: no text is read
    asked = Model(model, params, None, load.max_len, backend, None)  # type: ignore[arg-type]
    time_of = {Decode: bench.decode_bench, Prefill: bench.prefill_bench, Serve: bench.serve_bench}
    found = time_of[kind](asked, load)
    peak = hardware.matmul_peak(hardware.OPERANDS[PRECISION[args.dtype]])
    return result(kind.__name__.lower(), args, batch, load.context) | found | {
        "peak_gflop_s": round(peak.flop_s / 1e9, 1),
        "peak_rss_mib": peak_rss(),
        "versions": header.versions(),
    }
